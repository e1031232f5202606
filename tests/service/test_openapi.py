"""What schemathesis makes up from the OpenAPI document is answered as the document says."""

import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import allow_header_conformance, positive_data_acceptance

from patchscaler.service.app import create_app
from patchscaler.service.metrics import Metrics
from patchscaler.service.upscaler import Upscaler

metrics = Metrics()
app = create_app(Upscaler(lambda: None, observer=metrics), metrics)  # for its document; it is not started
schema = schemathesis.openapi.from_dict(app.openapi())


@schema.parametrize()
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_answers_are_as_documented(case, shared):
    # Made-up bytes fit the document and are no image all the same; Starlette allows by route, not by path.
    excluded = [positive_data_acceptance, allow_header_conformance]
    case.call_and_validate(str(shared.client.base_url), excluded_checks=excluded)
