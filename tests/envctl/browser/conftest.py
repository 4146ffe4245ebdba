"""What a browser loads is fetched at build time; without it there is nothing to look at."""

import pytest

from envctl.web.assets import missing_files


@pytest.fixture(autouse=True, scope="session")
def browser_code() -> None:
    missing = missing_files()
    if missing:
        pytest.skip(f"browser code is missing ({', '.join(missing)}): make assets")
