"""Addresses are shown without what they hide."""

import pytest

from orchestrator.secrets import hide_addresses, redacted, scrub, without_secrets

ADDRESSES = {
    "http://host:5000": "http://host:5000",
    "https://host/mlflow?page=1": "https://host/mlflow?page=1",
    "sqlite:////home/me@work/runs/mlflow.db": "sqlite:////home/me@work/runs/mlflow.db",
    "file:///a@b": "file:///a@b",
    "databricks": "databricks",
    "http://anna:geheim@host:5000/x": "http://***@host:5000/x",
    "https://t0ken@host": "https://***@host",
    "postgresql+psycopg://anna:pa/s?s@w#rd@host:5432/mlflow": "postgresql+psycopg://***@host:5432/mlflow",
    "s3://AKIAKEY:abc+/def@bucket/path": "s3://***@bucket/path",
    "http://host?token=abcd&page=2": "http://host?token=***&page=2",
    "postgresql://host/db?user=anna&sslpassword=abcd#x": "postgresql://host/db?user=anna&sslpassword=***#x",
    "http://host?X-Amz-Signature=abcd&api_key=efgh": "http://host?X-Amz-Signature=***&api_key=***",
    "http://anna:geheim@host?password=other": "http://***@host?password=***",
}


@pytest.mark.parametrize("uri", ADDRESSES)
def test_an_address_without_its_secrets(uri: str) -> None:
    assert redacted(uri) == ADDRESSES[uri]


@pytest.mark.parametrize(
    "text",
    [
        "API request to http://anna:p%40ss-w0rd@host/api failed",
        "Max retries exceeded with url: /api?token=t0k3n-of-mine&page=1",
        "login failed for anna with p@ss-w0rd",  # as a library spells it that took the address apart
        "key t0k3n-of-mine was not accepted",
        "redirected to https://another:secret9@elsewhere/",
    ],
)
def test_a_text_of_a_library_without_them(text: str) -> None:
    shown = scrub(text, "http://anna:p%40ss-w0rd@host?token=t0k3n-of-mine")
    assert "***" in shown
    assert not any(secret in shown for secret in ("p%40ss", "p@ss", "t0k3n", "secret9"))


def test_addresses_are_hidden_wherever_they_stand_and_words_are_left() -> None:
    uri = "http://anna:sw@eep/er@host"
    value = {"sweep": [uri, 1, None], "b": {"c": (f"from {uri} and s3://me:sesame@bucket?token=abc", 2.5, "sweep")}}
    shown = "from http://***@host and s3://***@bucket?token=***"
    assert hide_addresses(value, uri) == {"sweep": ["http://***@host", 1, None], "b": {"c": [shown, 2.5, "sweep"]}}


def test_a_password_that_is_a_word_of_the_sweep_file_spoils_nothing_in_it() -> None:
    plain = {"method": "learned", "learned": 1, "study": {"uri": None}, "tracking": {"experiment": "learned"}}
    tracking = {"uri": "postgresql://mlflow:learned@host/d@b", "experiment": "learned"}
    shown = {"uri": "postgresql://***@b", "experiment": "learned"}
    assert without_secrets({**plain, "tracking": tracking}) == {**plain, "tracking": shown}


def test_a_short_password_is_hidden_in_addresses_only() -> None:
    assert scrub("a bad answer from http://a:b@host", "http://a:b@host") == "a bad answer from http://***@host"


def test_of_two_secrets_of_which_one_holds_the_other_both_are_hidden_whole() -> None:
    """The longer one goes first: hidden after the shorter, its rest would stay readable."""
    assert scrub("it says a:sesame and sesame", "http://a:sesame@host") == "it says *** and ***"
    assert scrub("it says abcd and abcdefgh", "http://host?token=abcd&key=abcdefgh") == "it says *** and ***"


def test_a_secret_of_four_characters_is_hidden_and_one_of_three_is_no_word() -> None:
    assert scrub("word abc", "http://user:word@host") == "*** abc"
    assert scrub("word abc", "http://user:abc@host") == "word abc"
