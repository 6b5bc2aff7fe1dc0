"""Every criterion keeps the contract."""

from autoprune.pruning.criteria import CRITERIA
from tests.contracts.criterion_contract import CriterionContract
from tests.criteria_tasks import NETWORKS

UNGATED = tuple(name for name in NETWORKS if name != "gated")
NO_ZEROS = ("smooth", "vit")


class TestL1(CriterionContract):
    criterion = CRITERIA["l1"]


class TestL2(CriterionContract):
    criterion = CRITERIA["l2"]


class TestLamp(CriterionContract):
    criterion = CRITERIA["lamp"]


class TestGeometricMedian(CriterionContract):
    criterion = CRITERIA["geometric_median"]


class TestBatchNormScale(CriterionContract):
    criterion = CRITERIA["bn_scale"]
    refuses = ("smooth", "mlp", "vit")


class TestTaylor(CriterionContract):
    criterion = CRITERIA["taylor"]
    needs_data = True


class TestFisher(CriterionContract):
    criterion = CRITERIA["fisher"]
    needs_data = True


class TestHessian(CriterionContract):
    criterion = CRITERIA["hessian"]
    needs_data = True


class TestActivation(CriterionContract):
    criterion = CRITERIA["activation"]
    needs_data = True


class TestApoz(CriterionContract):
    criterion = CRITERIA["apoz"]
    needs_data = True
    refuses = NO_ZEROS


class TestGate(CriterionContract):
    criterion = CRITERIA["se_gate"]
    needs_data = True
    refuses = UNGATED


class TestRandom(CriterionContract):
    criterion = CRITERIA["random"]


def test_every_criterion_is_here() -> None:
    tested = {kind.criterion.name for kind in CriterionContract.__subclasses__()}
    assert tested == set(CRITERIA)
