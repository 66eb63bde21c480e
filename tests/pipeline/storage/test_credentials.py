"""Passwords, tokens and signatures: refused where they would be recorded, blanked out where they would be shown."""

import pytest

from pipeline.images.fetch import fetch
from pipeline.run.additions import read_everything
from pipeline.sources.listing import list_images
from pipeline.storage.credentials import names_user, redacted
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
