"""From a composed config to what is asked of a study."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from autoprune.domain.errors import AutopruneError
from autoprune.measurement.meter import PairedMeter
from autoprune.measurement.runtimes import OnnxRuntime
from autoprune.orchestration.studies.records import KINDS, Kind
from autoprune.orchestration.studies.sparsity import SparsityRequest
from autoprune.settings.build import build_request
from autoprune.settings.choices import choose
from autoprune.settings.rules import Faults


def build_sparsity(config: Mapping[str, Any], *, code_paths: Sequence[str] = ()) -> SparsityRequest:
    """What a plain config of `autoprune study sparsity` asks for.

    Raises FaultsError with every fault of every section, AutopruneError for a meter elsewhere.
    """
    faults = Faults()
    kept = faults.of(lambda: _kept(config["kept"]))
    kinds = faults.of(lambda: _kinds(config["kinds"]))
    sweep = faults.of(lambda: build_request(config, code_paths=code_paths))
    further = faults.of(lambda: _onnx(config))
    faults.check()
    if not isinstance(sweep.meter, PairedMeter):
        raise AutopruneError(
            f"a study measures where it runs, and meter.where is {config['meter']['where']}; set "
            "meter.where=trial"
        )
    meters = [sweep.meter]
    if further is not None and not isinstance(sweep.meter.runtime, OnnxRuntime):
        runtime = replace(further, threads=sweep.meter.runtime.threads)
        meters.append(replace(sweep.meter, runtime=runtime))
    return SparsityRequest(sweep, tuple(meters), kept=kept, kinds=kinds)


def _kept(shares: Sequence[float]) -> tuple[float, ...]:
    if not shares or len(set(shares)) < len(shares) or not all(0 < share < 1 for share in shares):
        raise AutopruneError(
            f"kept is {list(shares)}; choose shares of the parameters between 0 and 1, each once, "
            "such as [0.5, 0.1]"
        )
    return tuple(shares)


def _kinds(names: Sequence[str]) -> tuple[Kind, ...]:
    known = [str(kind) for kind in KINDS]
    wrong = [name for name in names if name not in known]
    if wrong:
        raise AutopruneError(f"kinds: there is no kind {wrong[0]!r}; {choose(wrong[0], known)}")
    if not names:
        raise AutopruneError(f"kinds is empty; {choose('', known)}")
    return tuple(dict.fromkeys(map(Kind, names)))


def _onnx(config: Mapping[str, Any]) -> OnnxRuntime | None:
    if not config["onnxruntime"]:
        return None
    try:
        return OnnxRuntime()
    except AutopruneError as error:
        raise AutopruneError(f"{error}, or set onnxruntime=false") from error
