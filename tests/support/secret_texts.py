"""Tokens in the format of their issuers, all invalid, and names that secrets have or do not have."""

from __future__ import annotations

FORMS = [
    "hf_abcdefghijklmnopqrstuvwxABCDEFGHIJ",
    "sk-" + "proj-" + "aB3_d9X7-qLm2Zr8" * 3,
    "sk-ant-api03-" + "aB3_-" * 12,
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "github_pat_11ABCDEFG0abcdefghijklmnop",
    "glpat-abcdefghij0123456789",
    "AKIAABCDEFGHIJKLMNOP",
    "ASIAABCDEFGHIJKLMNOP",
    "xoxb-1234567890-abcdefghij",
    "AIza" + "aB3-" * 9,
    "wandb_v1_" + "aB3_" * 19,
    "local-" + "0123456789abcdef0123" * 2,
    "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeKKF2QT4",
    "Bearer abcdef123456",
    "Basic dXNlcjpwYXNzd29yZA==",
    "npm_" + "aB3" * 12,
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAK\n-----END RSA PRIVATE KEY-----",
]
NAMES = """
    hub_token token HF_TOKEN hub_token_2 api_key apiKey api_keys x-api-key WANDB_API_KEY api_key_prod apitoken
    password db.password PGPASSWORD MYSQL_PWD db_pass pass DB_PASS_2 DB_PWD pwd passphrase
    AWS_SECRET_ACCESS_KEY private-key private_key ssh_key client_secret Authorization accessToken GITHUB_PAT
    MY_TOKENS AZURE_CONNECTION_STRING SENTRY_DSN SLACK_WEBHOOK_URL basic_auth secrets.wandb credentials.value
    trackers.wandb.api_key auth_key bearer cookie
"""
WORDS_OF_THE_TRADE = """
    pad_token eos_token bos_token pad_token_id tokenizer num_tokens num_token tokens tokens_per_second
    token_accuracy max_new_tokens mean_token_accuracy include_num_input_tokens_seen total_tokens
    prompt_tokens image_token
    author key keys sort_key public_key monkey keyboard session bypass passes compass pass@1 eval/pass@10
    pass_1 pass_rate forward_pass PWD OLDPWD SSH_AUTH_SOCK TOKENIZERS_PARALLELISM WANDB_IDENTITY_TOKEN_FILE
    secretary
    pattern path patience pin_memory
"""
SECRET_NAMES, OTHER_NAMES = NAMES.split(), WORDS_OF_THE_TRADE.split()
