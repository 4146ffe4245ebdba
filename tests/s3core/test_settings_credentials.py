"""Where keys come from, and what is refused on the way."""

from pathlib import Path

import pytest

from s3core.credentials import CredentialsError, environment_names, find_credentials, read_secret

KEYS = 'access_key = "AK"\nsecret_key = "hush"\n'


def private(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_environment_own_variables_come_before_the_aws_ones() -> None:
    aws = {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "S", "AWS_SESSION_TOKEN": "T"}
    found = find_credentials("my-site", "environment", aws)
    assert (found.access_key, found.secret_key, found.session_token, found.source) == ("A", "S", "T", "environment")
    own = {"BUCKETWORKS_MY_SITE_ACCESS_KEY": "B", "BUCKETWORKS_MY_SITE_SECRET_KEY": "R"}
    found = find_credentials("my-site", "environment", aws | own)
    assert (found.access_key, found.secret_key, found.session_token) == ("B", "R", "")
    assert environment_names("my-site")["access_key"] in own


def test_environment_without_keys_says_what_to_set() -> None:
    with pytest.raises(CredentialsError, match="set BUCKETWORKS_A_ACCESS_KEY and BUCKETWORKS_A_SECRET_KEY"):
        find_credentials("a", "environment", {})
    with pytest.raises(CredentialsError, match="AWS_SECRET_ACCESS_KEY is not set, though its partner is"):
        find_credentials("a", "environment", {"AWS_ACCESS_KEY_ID": "A"})


def test_none_is_unsigned() -> None:
    assert find_credentials("a", "none", {"AWS_ACCESS_KEY_ID": "A"}).anonymous


def test_a_private_file(tmp_path: Path) -> None:
    path = private(tmp_path / "key", KEYS)
    found = find_credentials("a", f"file:{path}", {})
    assert (found.access_key, found.secret_key, found.source) == ("AK", "hush", f"file {path}")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_file_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = private(tmp_path / "key", KEYS)
    path.chmod(mode)
    with pytest.raises(CredentialsError, match=f"has mode {mode:04o}; make it private: chmod 600"):
        find_credentials("a", f"file:{path}", {})
    with pytest.raises(CredentialsError, match="chmod 600"):
        read_secret(path)


@pytest.mark.parametrize(
    "text", ["", "hush", "access_key = 'AK'", KEYS + "colour = 'red'", "access_key=1\nsecret_key=2"]
)
def test_a_file_that_is_something_else_is_never_quoted(tmp_path: Path, text: str) -> None:
    path = private(tmp_path / "key", text)
    with pytest.raises(CredentialsError, match="must hold the lines access_key") as caught:
        find_credentials("a", f"file:{path}", {})
    assert "hush" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="cannot read the credentials: No such file"):
        find_credentials("a", f"file:{tmp_path / 'none'}", {})


def test_a_systemd_credential(tmp_path: Path) -> None:
    private(tmp_path / "site", KEYS)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    found = find_credentials("a", "systemd:site", environ)
    assert (found.secret_key, found.source) == ("hush", "systemd credential site")
    with pytest.raises(CredentialsError, match="LoadCredential=site:"):
        find_credentials("a", "systemd:site", {})
    with pytest.raises(CredentialsError, match="no slash"):
        find_credentials("a", "systemd:../site", environ)


def test_a_systemd_credential_may_be_read_by_an_access_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd 254 and later: mode 0440 in the directory of the unit's own credentials, for a unit with User=."""
    given = tmp_path / "credentials"
    given.mkdir()
    private(given / "site", KEYS).chmod(0o440)
    environ = {"CREDENTIALS_DIRECTORY": str(given)}
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    assert find_credentials("a", "systemd:site", environ).secret_key == "hush"
    elsewhere = private(tmp_path / "key", KEYS)
    elsewhere.chmod(0o440)
    with pytest.raises(CredentialsError, match="mode 0440"):
        find_credentials("a", f"file:{elsewhere}", environ)
    (given / "site").chmod(0o444)
    with pytest.raises(CredentialsError, match="mode 0444"):
        find_credentials("a", "systemd:site", environ)


def test_an_aws_profile(tmp_path: Path) -> None:
    private(tmp_path / ".aws/credentials", "[backup]\naws_access_key_id = AK\naws_secret_access_key = hush%x\n")
    private(tmp_path / ".aws/config", "[profile backup]\nregion = eu-west-1\naws_session_token = T\n[default]\n")
    found = find_credentials("a", "profile:backup", {"HOME": str(tmp_path)})
    assert (found.access_key, found.secret_key, found.session_token) == ("AK", "hush%x", "T")
    assert found.source == "profile backup"


def test_a_profile_that_cannot_serve(tmp_path: Path) -> None:
    private(tmp_path / ".aws/config", "[profile sso]\nsso_session = x\n")
    environ = {"HOME": str(tmp_path)}
    with pytest.raises(CredentialsError, match="aws configure export-credentials --profile sso"):
        find_credentials("a", "profile:sso", environ)
    with pytest.raises(CredentialsError, match="no aws_access_key_id"):
        find_credentials("a", "profile:other", environ)
    path = private(tmp_path / ".aws/credentials", "[p]\naws_access_key_id = AK\naws_secret_access_key = hush\n")
    path.chmod(0o644)
    with pytest.raises(CredentialsError, match="chmod 600"):
        find_credentials("a", "profile:p", environ)
    private(path, "hush without a section\n")
    with pytest.raises(CredentialsError, match="is not an AWS configuration file") as caught:
        find_credentials("a", "profile:p", environ)
    assert "hush" not in str(caught.value)


def test_a_secret_is_the_first_line(tmp_path: Path) -> None:
    assert read_secret(private(tmp_path / "chap", "hush  \nrest\n")) == "hush"
    with pytest.raises(CredentialsError, match="is empty"):
        read_secret(private(tmp_path / "empty", "\n"))
