"""Attention over the few tokens of a patch in one kernel, the normalisation of queries and keys included.

With 64 tokens a head fits on a processor whole: queries, keys and values are read once and the result is written
once, half of what separate kernels read and write. It is called from compiled code alone: Triton comes with it.
"""

# ruff: noqa: ANN001, ANN202  (a kernel takes pointers and numbers)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def attend(
    query: Tensor, key: Tensor, value: Tensor, query_scale: Tensor, key_scale: Tensor | None, eps: float
) -> Tensor:
    """Mixed values (n, T, heads * d) of heads of width d, a power of 2 from 16 to 128.

    Args:
        query: (n, T, heads, d), not yet normalised, the last dimension dense; T is at most 128.
        key: (n, L, heads, d), likewise, normalised or not.
        value: (n, L, heads, d), likewise.
        query_scale: weight (d,) of the root mean square norm of queries.
        key_scale: that of keys; None takes keys as they are.
        eps: of both norms.
    """
    count, tokens, heads, width = query.shape
    out = torch.empty((count, tokens, heads, width), device=query.device, dtype=value.dtype)
    _attend[(count, heads)](  # pyright: ignore[reportIndexIssue]
        query,
        key,
        value,
        query_scale,
        query_scale if key_scale is None else key_scale,
        out,
        tokens,
        key.shape[1],
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        *out.stride()[:3],
        eps=eps,
        norm_keys=key_scale is not None,
        TOKENS=max(16, triton.next_power_of_2(tokens)),
        LENGTH=max(16, triton.next_power_of_2(key.shape[1])),
        WIDTH=width,
    )
    return out.flatten(2)


@triton.jit
def _attend(
    query,
    key,
    value,
    query_scale,
    key_scale,
    out,
    tokens,
    length,
    query_patch,
    query_token,
    query_head,
    key_patch,
    key_token,
    key_head,
    value_patch,
    value_token,
    value_head,
    out_patch,
    out_token,
    out_head,
    eps: tl.constexpr,
    norm_keys: tl.constexpr,
    TOKENS: tl.constexpr,
    LENGTH: tl.constexpr,
    WIDTH: tl.constexpr,
):
    patch, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token, place = tl.arange(0, TOKENS)[:, None], tl.arange(0, LENGTH)[:, None]
    channel = tl.arange(0, WIDTH)[None, :]
    here, there = token < tokens, place < length
    q = tl.load(query + patch * query_patch + token * query_token + head * query_head + channel, here, 0.0)
    k = tl.load(key + patch * key_patch + place * key_token + head * key_head + channel, there, 0.0)
    v = tl.load(value + patch * value_patch + place * value_token + head * value_head + channel, there, 0.0)
    q = _normed(q.to(tl.float32), tl.load(query_scale + channel), eps, WIDTH).to(v.dtype)
    if norm_keys:
        k = _normed(k.to(tl.float32), tl.load(key_scale + channel), eps, WIDTH).to(v.dtype)
    scores = tl.dot(q, tl.trans(k)) * WIDTH**-0.5
    scores = tl.where(tl.trans(there), scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    mixed = tl.dot(weights.to(v.dtype), v) / tl.sum(weights, 1)[:, None]
    tl.store(out + patch * out_patch + token * out_token + head * out_head + channel, mixed.to(v.dtype), here)


@triton.jit
def _normed(x, scale, eps: tl.constexpr, WIDTH: tl.constexpr):
    return x * tl.rsqrt(tl.sum(x * x, 1)[:, None] / WIDTH + eps) * scale.to(tl.float32)
