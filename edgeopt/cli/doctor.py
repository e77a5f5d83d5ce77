"""`edgeopt doctor`."""

from __future__ import annotations

from edgeopt.cli.options import AsJson


def doctor(as_json: AsJson = False) -> int:
    """Show what this machine has and what it lacks.

    Runtimes, backends and CPU features, what each is for and how to get it; plug-ins. Exits 1 if a
    package that edgeopt cannot work without is missing or broken.
    """
    from edgeopt.api.doctor import run_doctor
    from edgeopt.cli.text import only_json, show_json

    with only_json(wanted=as_json):
        result = run_doctor()
    if as_json:
        show_json(result)
    else:
        from edgeopt.cli.summary import show_doctor

        show_doctor(result)
    return 0 if result.healthy else 1
