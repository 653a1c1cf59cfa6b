"""Test chats as text, and the messages that are refused."""

from __future__ import annotations

import pytest

from hf_itp.errors import ArgumentError
from hf_itp.rewards.text.rendering import as_messages, conversation, fold_system, transcript

USER = {"role": "user", "content": "how"}
ASSISTANT = {"role": "assistant", "content": "so"}
SYSTEM = {"role": "system", "content": "be good"}


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("how", "how"),
        ([USER], "how"),
        ([USER, ASSISTANT, USER], "User: how\n\nAssistant: so\n\nUser: how"),
        ([SYSTEM, USER], "System: be good\n\nUser: how"),
        ([SYSTEM], "System: be good"),
        ([{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "ow"}]}], "how"),
    ],
)
def test_transcript_of(prompt, text):
    assert transcript(prompt) == text


def test_response_is_the_assistants_turn():
    assert conversation([USER], "so") == [USER, ASSISTANT]
    assert conversation("how", "so") == [USER, ASSISTANT]


def test_response_continues_an_assistant_message_the_chat_ends_in():
    assert conversation([USER, ASSISTANT], " on") == [USER, {"role": "assistant", "content": "so on"}]


def test_system_message_moves_into_the_first_user_turn():
    folded = {"role": "user", "content": "be good\n\nhow"}
    assert fold_system([SYSTEM, USER, ASSISTANT]) == [folded, ASSISTANT]
    assert fold_system([SYSTEM, ASSISTANT]) == [{"role": "user", "content": "be good"}, ASSISTANT]


def test_callers_chat_is_not_changed():
    chat = [dict(SYSTEM), dict(USER), dict(ASSISTANT)]
    fold_system(conversation(chat, " on"))
    as_messages(chat).pop()["content"] = "other"
    assert chat == [SYSTEM, USER, ASSISTANT]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "Add a user message"),
        (3, "Pass a string or a chat"),
        (USER, "Pass a string or a chat"),
        ([[USER]], "For several prompts pass one chat per prompt"),
        ([USER, {"content": "how"}], 'Message 1 .* Add "role": "user"'),
        ([{"role": 3, "content": "how"}], 'Add "role": "user"'),
        ([{"role": "user"}], "Write its text into `content`"),
        ([{"role": "user", "content": None}], "Write its text into `content`"),
        ([{"role": "user", "content": [{"type": "image"}]}], "'image'.* Pass a reward function of your own"),
    ],
)
def test_prompt_that_is_no_chat_is_refused(prompt, message):
    with pytest.raises((ArgumentError, TypeError), match=message):
        transcript(prompt)
