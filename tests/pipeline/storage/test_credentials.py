"""Passwords, tokens and signatures: refused where they would be recorded, blanked out where they would be shown."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images.fetch import fetch
from pipeline.run.additions import read_everything
from pipeline.sources.listing import list_images
from pipeline.storage.credentials import names_user, only_host, redacted
from tests.support.runs import rows, stand_in_run

SECRET = "hush+/42"
WITH_CREDENTIALS = [
    f"s3://KEY:{SECRET}@bucket/faces",
    f"https://user:{SECRET}@host/faces.csv",
    f"https://{SECRET.replace('/', '')}@host/faces.csv",
    f"simplecache::s3://KEY:{SECRET}@bucket/faces",
    f"https://host/x.tar?X-Amz-Date=1&X-Amz-Signature={SECRET}",
    f"https://account.blob.core.windows.net/c/x.tar?sv=2024&sig={SECRET}&se=1",
    f"https://storage.googleapis.com/b/x.tar?X-Goog-Signature={SECRET}",
    f"https://host/x.tar?access_token={SECRET}",
]
WITHOUT = [
    "s3://bucket/a@b/x:y@2x.png",
    "http://host:8080/photo@2x.png?size=3&design=4",
    "abfss://container@account.dfs.core.windows.net/faces",
    "sftp://user@host:22/faces",
    "/local/pa:th@x?sig",
]


@pytest.mark.parametrize("url", WITH_CREDENTIALS)
def test_credentials_in_a_url_are_blanked_out_and_the_rest_stays(url):
    shown = redacted(f"reading {url}, '{url}'")
    assert "hush" not in shown and "42" not in shown and shown.count("***") == 2
    assert shown.startswith("reading ") and redacted(shown) == shown


@pytest.mark.parametrize("url", WITHOUT)
def test_a_url_without_credentials_is_shown_as_it_is(url):
    assert redacted(url) == url and not names_user(url)


NAMES = st.sampled_from(
    [
        *("api_key", "apiKey", "apikey", "API-KEY", "key", "password", "passwd", "pwd", "auth", "jwt", "sas", "sig"),
        *("token", "access_token", "accessToken", "secret", "client_secret", "X-Amz-Signature", "X-Amz-Security-Token"),
    ]
)


def in_percent(name: str, every: int) -> str:
    """The name of a parameter with some of its characters percent-encoded, which servers decode."""
    return "".join(
        f"%{ord(character):02x}" if index % every == 0 else character for index, character in enumerate(name)
    )


@given(
    name=NAMES,
    every=st.integers(1, 9),
    before=st.sampled_from(["?", "?a=1&", "?a=1;", "#", "?a=1#", "?a=1&amp;"]),
    after=st.sampled_from(["", "&b=2", "#end", " and more", "', then"]),
    secret=st.text(min_size=1, max_size=20).map(lambda text: f"hush{quote(text, safe='/+;=,:@!$()*~?')}"),
)
def test_no_secret_in_a_parameter_survives_whatever_the_name_is_written_like(name, every, before, after, secret):
    for written in (name, in_percent(name, every)):
        text = f"cannot read https://host/x.tar{before}{written}={secret}{after}"
        shown = redacted(text)
        assert "hush" not in shown and shown == redacted(shown)
        assert shown == text.replace(secret, "***")


@given(
    path=st.lists(st.from_regex(r"[a-zA-Z0-9@:._~-]{1,12}", fullmatch=True), min_size=1, max_size=4).map("/".join),
    parameters=st.lists(
        st.tuples(
            st.sampled_from(["design", "monkey", "size", "assignee", "keyword", "tokens", "passage", "v", "page"]),
            st.from_regex(r"[a-zA-Z0-9_.-]{0,12}", fullmatch=True),
        )
    ),
)
def test_an_ordinary_url_is_shown_as_it_is(path, parameters):
    url = f"https://host/x/{path}?{'&'.join(f'{name}={value}' for name, value in parameters)}"
    assert redacted(url) == url


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer hush-hush-hush",
        "headers {'Authorization': 'Basic hush', 'Accept': '*'}",
        "authorization: AWS4-HMAC-SHA256 Credential=hush/2026, SignedHeaders=host, Signature=hush",
        "ClientError: {'aws_secret_access_key': 'hush', 'region': 'x'}",
        "AccountName=a;AccountKey=hush==;EndpointSuffix=core.windows.net",
        "password=hush",
        '{"api_key": "hush"}',
        "X-Amz-Security-Token: hush",
        "the key AKIAHUSH" + "A" * 12 + " does not exist".replace("hush", ""),
        "bad token hf_" + "hush" * 8,
        "ghp_" + "hush" * 8,
        "eyJhush12345.hush.hush",
    ],
)
def test_secrets_in_the_errors_of_drivers_are_blanked_out(text):
    assert "hush" not in redacted(text).lower() and "***" in redacted(text)


@pytest.mark.parametrize(
    "text",
    ["the key is there twice: leave one out", "token: give one", "keys: a, b", "--set seed=4", "the secret of x.png"],
)
def test_sentences_without_secrets_stay(text):
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://hooks.slack.com/services/T0/hush", "https://hooks.slack.com"),
        ("https://user:hush@host:8443/a?b=hush", "https://host"),
        ("https://[::1/hush", "https://?"),
        ("https:///hush", "https://?"),
    ],
)
def test_only_the_host_of_a_url_whose_path_is_secret_is_shown(url, shown):
    assert only_host(url) == shown


@pytest.mark.parametrize("option", ["--source", "--output", "--model", "--inversions", "--direction"])
@pytest.mark.parametrize("url", WITH_CREDENTIALS[:2] + WITH_CREDENTIALS[4:5])
def test_a_url_with_credentials_that_would_be_recorded_is_refused_without_repeating_them(cli, tmp_path, option, url):
    flags = {"--source": str(tmp_path), "--output": str(tmp_path / "out"), "--edit": "glasses=1"}
    flags[option] = f"mine={url}" if option == "--direction" else url
    code, out, err = cli("run", *(part for flag in flags.items() for part in flag))
    assert code == 2 and "holds credentials, and the run would record them" in err.replace("\n", " ")
    assert "hush" not in out + err and not (tmp_path / "out").exists()


def test_a_password_in_a_list_is_denied_and_does_not_get_into_key_or_manifest(tmp_path):
    (tmp_path / "list.txt").write_text(f"https://user:{SECRET}@host/x.png\n")
    [image] = list_images(str(tmp_path / "list.txt"))
    assert "hush" not in f"{image}"
    with pytest.raises(PermissionError, match=r"is not a URL that a list may name: .* without a password"):
        fetch(image)


@pytest.mark.usefixtures("no_waiting")
def test_a_signature_in_a_list_is_kept_to_fetch_again_and_shown_nowhere(tmp_path, httpserver, caplog):
    httpserver.expect_request("/busy.png").respond_with_data("busy", 503)
    (tmp_path / "list.txt").write_text(httpserver.url_for(f"/busy.png?sig={SECRET}") + "\n")
    store = stand_in_run(tmp_path / "list.txt", tmp_path / "out")
    [planned] = read_everything(store)
    assert planned.uri.endswith(f"sig={SECRET}")
    for row in rows(tmp_path / "out").values():
        assert row["status"] == "fetch_error" and "503" in row["error"] and row["source_uri"] == planned.uri
        assert "hush" not in row["error"] + row["key"]
    ours = "".join(record.getMessage() for record in caplog.records if record.name.startswith("pipeline"))
    assert "busy.png?sig=***: attempt 1 failed" in ours and "hush" not in ours
    assert b"hush" not in store.read("run.json")


@pytest.mark.parametrize("text", ["the table names '/etc/passwd': it may not", "-e /etc/passwd=1", "/a/secret: x"])
def test_a_path_that_ends_like_a_secret_is_shown(text):
    assert redacted(text) == text
