"""The names whose values are secrets: the one list used everywhere.

A name is judged word by word, so that `hub_token` and `PGPASSWORD` are secret, but `pad_token`, `pass@1` and
`tokens_per_second` are not. `token`, `MY_TOKEN` and `MY_PAT` are secret in options, headers and environment
variables; in tracked data they are also technical terms, so their values decide.
"""

from __future__ import annotations

import functools
import itertools
import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LONGEST_NAME = 200
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# The working directories of a shell: hiding them would break absolute paths of data.
_NO_SECRETS = frozenset({"PWD", "OLDPWD"})
_SECRET_WORDS = _words("pwd cred creds bearer authorization cookie cookies jwt apikey apikeys csrf otp")
_SECRET_ENDS = (
    "password", "passwords", "passwd", "passphrase", "passphrases", "passcode", "secret", "secrets",
    "credential", "credentials", "accesskey", "secretkey", "privatekey", "sshkey", "authtoken", "accesstoken",
)  # fmt: skip
_SECRET_LAST = frozenset({"auth", "dsn", "pw", "psk", "webhook"})
_SECRET_LAST_PAIRS = frozenset(
    {
        ("connection", "string"),
        ("connection", "str"),
        ("conn", "string"),
        ("conn", "str"),
        ("webhook", "url"),
        ("sas", "url"),
        ("sas", "uri"),
    }
)
# `key` alone may be that of a dictionary or database; after one of these words, it is a credential.
_KEYS = _words(
    "access account admin anthropic api app application auth aws azure client cohere comet decryption "
    "deepseek deploy encryption fireworks gcp gemini github gitlab google gpg groq hf hmac hub huggingface "
    "langchain langfuse langsmith license master mistral neptune nvidia openai openrouter perplexity pgp "
    "pinecone private replicate root rsa secret service session shared signing ssh ssl storage subscription "
    "tls together wandb webhook xai"
)
# Tokens that are credentials.
_CREDENTIAL_TOKENS = _words(
    "access account admin anthropic api app auth aws azure bearer bot client clearml cohere comet csrf "
    "deploy gh github gitlab google hf hub huggingface identity jwt login mlflow neptune npm oauth openai "
    "personal private push pypi refresh registry sas secret security service session slack telegram vault "
    "wandb webhook write xsrf"
)
_PASSES = _words(
    "admin db email ftp http imap key ldap login mail mongo my mysql pg postgres proxy redis root smtp ssh "
    "sudo user vnc vpn wifi"
)
# Written as one word: `HFTOKEN`, `dbpass`.
_ONE_WORD = frozenset(
    {f"{word}key" for word in _KEYS | {"priv", "pass"}}
    | {f"{word}token" for word in _CREDENTIAL_TOKENS}
    | {f"{word}tokens" for word in _CREDENTIAL_TOKENS}
    | {f"{word}pass" for word in _PASSES}
)
# Tokens of tokenizers, and counts of them.
_TOKENS_OF_THE_TRADE = _words(
    "action add added additional all answer assistant audio avg bad batch begin boi bos cached cls "
    "completion context control count decoder draft each end eoi eos eot eval extra fim first forced "
    "forward generated gold image img input label last mask max mean min mtp n new newline next no num "
    "number output pad padding per predicted prefix prompt rare reasoning response row seen sep source "
    "special start stop suffix suppress system target teacher text think tool top total train trained unk "
    "user valid video vision"
)
_PASSES_OF_THE_TRADE = _words(
    "all backward each first forward last max multi n no num one per second single test tests third two"
)
_PATTERNS = _words("exclude file filter glob include match name path re regex regexp search split url")
# `password_file` is a location, and `password_strength` a measurement: neither is the secret.
_PLACES = _words("dir directory file files folder manager path paths policy provider")
_MEASURES = _words(
    "accuracy column count counts detected detection expiry field hint leak leaked leaks len length max min "
    "name question rate recall score strength ttl type word words"
)
# Suffixes that do not matter: `hub_token_2`, `api_key_prod`.
_TAILS = _words("b64 base64 dev new old prod production secondary staging value values")


def is_secret_name(name: str) -> bool:
    """Whether the value of an option, header or environment variable is a secret by its name, or by a part of
    its dotted name: `hub_token` and `secrets.wandb` are, `pad_token` is not."""
    return _strength(name[-_LONGEST_NAME:]) > _NONE


def names_credential(name: str) -> bool:
    """Whether a name is secret everywhere, even in tracked data: `api_key` and `hub_token` are; `token` and
    `rare_tokens` may be columns of tables."""
    return _strength(name[-_LONGEST_NAME:]) == _STRONG


_NONE, _WEAK, _STRONG = range(3)


@functools.lru_cache(maxsize=4096)
def _strength(name: str) -> int:
    return max(map(_strength_of_part, re.split(r"[./]", name)))


def is_count(name: str) -> bool:
    """Whether a number with this name is a count of tokens."""
    return name.lower().endswith("tokens")


def _strength_of_part(name: str) -> int:
    if name in _NO_SECRETS:
        return _NONE
    words = [word.lower() for word in _WORDS.findall(name)]
    numbered = bool(words) and words[-1].isdigit()
    words = [word for word in words if not word.isdigit()]
    while len(words) > 1 and words[-1] in _TAILS:
        del words[-1]
    if not words or words[-1] in _PLACES | _MEASURES:
        return _NONE
    pairs = list(itertools.pairwise(words))
    if any(word in _SECRET_WORDS | _ONE_WORD or word.endswith(_SECRET_ENDS) for word in words):
        return _STRONG
    if any(second in ("key", "keys") and first in _KEYS for first, second in pairs):
        return _STRONG
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last in ("token", "tokens"):
        return _strength_of_token(before, plural=last == "tokens")
    if last == "pass":  # pass@1 is a metric
        strength = _STRONG if not before or before in _PASSES else _WEAK
        return _NONE if before in _PASSES_OF_THE_TRADE or (not before and numbered) else strength
    if last == "pat":
        strength = _STRONG if before in _CREDENTIAL_TOKENS else _WEAK
        return _NONE if before in _PATTERNS else strength
    return _STRONG if last in _SECRET_LAST or (bool(pairs) and pairs[-1] in _SECRET_LAST_PAIRS) else _NONE


def _strength_of_token(before: str, *, plural: bool) -> int:
    if before in _TOKENS_OF_THE_TRADE or (plural and not before):
        return _NONE
    return _STRONG if before in _CREDENTIAL_TOKENS else _WEAK
