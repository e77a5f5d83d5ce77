"""`edgeopt verify`."""

from __future__ import annotations

from edgeopt.cli.options import AsJson, BundleArgument


def verify(bundle: BundleArgument, as_json: AsJson = False) -> int:
    """Check a bundle from its files alone.

    Checksums, contracts in the exported files, integer proof, golden vectors. Exits 1 if a check
    fails, 3 if one needs a runtime that this machine lacks.
    """
    from edgeopt.api.verify import run_verify
    from edgeopt.cli.text import only_json, show_json
    from edgeopt.results.verdicts import Verdict

    with only_json(wanted=as_json):
        result = run_verify(bundle)
    if as_json:
        show_json(result)
    else:
        from edgeopt.cli.summary import show_verify

        show_verify(result)
    return {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.NOT_MEASURED: 3}[result.verdict]
