import pytest
import torch

from patchscaler.errors import DeviceError
from patchscaler.runtime.device import describe_devices, resolve_device, resolve_dtype


def test_auto_device_is_one_that_is_described():
    name = str(resolve_device("auto"))
    assert resolve_device(None) == resolve_device("auto")
    assert any(str(record["device"]).startswith(name) for record in describe_devices())


def test_named_devices_pass_through():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "cuda:x", "meta", ""])
def test_absent_or_unknown_device_is_one_line(name):
    with pytest.raises(DeviceError) as caught:
        resolve_device(name)
    assert len(str(caught.value).splitlines()) == 1


def test_auto_precision_follows_the_device():
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype(None, torch.device("cuda:0")) == torch.float16


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_named_precisions(name, dtype):
    assert resolve_dtype(name, torch.device("cpu")) == dtype
    assert resolve_dtype(dtype, torch.device("cpu")) == dtype


@pytest.mark.parametrize("name", ["int8", "float32", torch.float64])
def test_other_precisions_are_refused(name):
    with pytest.raises(DeviceError):
        resolve_dtype(name, torch.device("cpu"))


def test_cpu_is_always_described():
    assert describe_devices()[-1]["device"] == "cpu"
