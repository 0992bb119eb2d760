"""Passwords, keys and tokens: hide them in what is printed and recorded.

A value is secret if the name of its setting says so, or if it is a password in a URL.
"""

import json
import re
from typing import Any

from proj.engine.escaping import visible

# What is recorded in place of a secret value, and of a password in a URL.
NOT_RECORDED = "<not recorded>"
MASK = "***"

# The last word of a setting's name, without the endings below.
SECRET_WORDS = {
    *("password", "passwd", "passphrase", "pwd", "secret", "credential", "authorization", "auth"),
    *("apikey", "accesskey", "secretkey", "authtoken", "bearer", "cookie", "sas"),
}
ENDINGS = {"value", "text", "string", "str", "base", "s"}
# These words are secret unless the word before them says what else they are.
OTHER_KEYS = {
    *("monitor", "sort", "primary", "foreign", "group", "cache", "index", "metric", "column"),
    *("dict", "join", "target", "label", "time", "batch", "loss", "input", "output", "image"),
    *("data", "row", "sample", "query", "public", "map", "state", "mask", "feature", "value"),
}
OTHER_TOKENS = {
    *("pad", "cls", "mask", "bos", "eos", "sep", "unk", "special", "start", "end", "class", "sos"),
    *("stop", "prefix", "blank", "oov", "word", "num", "n", "max", "min", "per", "separator"),
}
# Plurals are counts or lists, unless the word before them says that they are secret.
SECRET_PREFIXES = {"api", "access", "auth", "secret", "private", "refresh", "bearer"}

# Options that hold names of columns as keys; their values are words of this program.
TABLES = {"columns"}

# Other texts are too likely to be a part of a harmless message.
MIN_HIDDEN_LENGTH = 6

# A user, a password and a host. A password may hold any character but white space.
URL_PASSWORD = re.compile(r"(://[^:/\s@]*:)([^\s@]*(?:@[^\s@/\"',]*)*)(?=@)")
URL_TOKEN = re.compile(r"(https?://)([^:/\s@]+)(?=@)")
URL_OPTION = re.compile(r"([?&;])([\w.-]+)=([^&;#\s\"']+)")

# Secret values of this process, which are masked in everything that it prints.
_hidden: set[str] = set()


def is_secret_name(name: str) -> bool:
    """Return whether the last part of a dotted key names a secret.

    >>> is_secret_name("logger.init_args.api_key"), is_secret_name("monitor_key")
    (True, False)
    """
    name = name.rpartition(".")[2]
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    while len(words) > 1 and words[-1] in ENDINGS:
        words.pop()
    if not words:
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last in ("key", "token"):
        return before not in (OTHER_KEYS if last == "key" else OTHER_TOKENS)
    if last in ("keys", "tokens"):
        return before in SECRET_PREFIXES
    return last in SECRET_WORDS or last.removesuffix("s") in SECRET_WORDS


def mask_urls(text: str) -> str:
    """Return a text with the passwords of its URLs masked.

    >>> mask_urls("postgresql://bob:S3CRET@host/db?sslpassword=S3CRET")
    'postgresql://bob:***@host/db?sslpassword=***'
    """

    def option(match: re.Match[str]) -> str:
        value = MASK if is_secret_name(match[2]) else match[3]
        return f"{match[1]}{match[2]}={value}"

    if "://" not in text:
        return text
    text = URL_PASSWORD.sub(rf"\1{MASK}", text)
    return URL_OPTION.sub(option, URL_TOKEN.sub(rf"\1{MASK}", text))


def hide(secrets: dict[str, Any]) -> None:
    """Mask secret values, by dotted key, in everything that this process prints from now on."""
    for key, value in secrets.items():
        text = str(value)
        if password := URL_PASSWORD.search(text):
            text = password[2]
        # The value of a setting `key` may be an ordinary word.
        is_word = text.isalpha() and key.lower().endswith(("key", "token"))
        if len(text) >= MIN_HIDDEN_LENGTH and not is_word:
            _hidden.add(text)


def printable(text: str, keep: str = "") -> str:
    """Return a text of unknown origin for a place that people read: one line, without secrets.

    ``keep`` are control characters that stay; see ``visible``.
    """
    # Longer values first: one may be a part of another.
    for value in sorted(_hidden, key=len, reverse=True):
        text = text.replace(value, MASK)
    return visible(mask_urls(text), keep)


def split_secrets(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a copy of nested plain values without secrets, and the secrets by dotted key."""
    secrets: dict[str, Any] = {}
    public: dict[str, Any] = _public(values, "", False, secrets)
    return public, secrets


def _public(value: Any, key: str, is_secret: bool, secrets: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        # The options of a class have names of their own.
        is_secret = is_secret and "class_path" not in value
        in_table = key.rpartition(".")[2] in TABLES
        return {
            name: _public(
                inner,
                f"{key}.{name}".strip("."),
                is_secret or (not in_table and is_secret_name(str(name))),
                secrets,
            )
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_public(item, f"{key}.{i}", is_secret, secrets) for i, item in enumerate(value)]
    if is_secret and _can_be_secret(value):
        secrets[key] = value
        return NOT_RECORDED
    if isinstance(value, str) and (masked := mask_urls(value)) != value:
        secrets[key] = value
        return masked
    return value


def _can_be_secret(value: Any) -> bool:
    """Return whether a value of a secret setting is a secret, not a switch, a number or a name."""
    if isinstance(value, str):
        # An environment variable is a name, and its value is recorded nowhere.
        return bool(value) and value != NOT_RECORDED and not re.fullmatch(r"\$\{?\w+\}?", value)
    return isinstance(value, int) and not isinstance(value, bool) and value > 999


def is_placeholder(value: Any) -> bool:
    """Return whether a recorded value stands for a secret that was not recorded."""
    return isinstance(value, str) and (value == NOT_RECORDED or f":{MASK}@" in value)


def split_words(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the words of a command line without secrets, and the secrets by dotted key."""
    public: list[str] = []
    found: dict[str, Any] = {}
    flag = ""
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--") and not equals:
            public.append(word)
            flag = word
            continue
        if not (word.startswith("--") and equals):
            name, value = flag, word
        text, secrets = _public_word(name.lstrip("-"), value)
        public.append(f"{name}={text}" if word.startswith("--") else text)
        found |= secrets
        flag = ""
    return public, found


def _public_word(key: str, value: str) -> tuple[str, dict[str, Any]]:
    """Return the value of a flag without secrets, and the secrets by dotted key."""
    content: Any = value
    if value[:1] in ("{", "["):
        import yaml  # `--help` does not need it.

        try:
            content = yaml.safe_load(value)
        except (yaml.YAMLError, RecursionError):  # The parser of the experiment reports it.
            content = value
    nested: Any = content
    for name in reversed(key.replace("+", "").split(".")):
        nested = {name: nested}
    public, secrets = split_secrets(nested)
    if not secrets:
        return value, {}
    for name in key.replace("+", "").split("."):
        public = public[name]
    return public if isinstance(public, str) else json.dumps(public), secrets
