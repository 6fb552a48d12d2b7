import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_train.adapters.launcher.messages import Configure, Exited, Fork, Message, Ready, Started, decode, encode

_text = st.text(max_size=20)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)
_messages = st.one_of(
    st.builds(
        Configure,
        entry=_text,
        spec=st.dictionaries(_text, _json, max_size=3),
        preload=st.lists(_text, max_size=3),
        log_dir=_text,
        sys_path=st.lists(_text, max_size=3),
        pythonpath=st.none() | _text,
        ready_timeout_s=st.floats(0, 1e6),
    ),
    st.builds(Fork, worker_id=_text, worker_index=st.integers(0, 1000)),
    st.builds(Ready, failed=st.dictionaries(_text, _text, max_size=3), threads=st.lists(_text, max_size=3)),
    st.builds(Started, worker_id=_text, pid=st.integers(1, 2**22)),
    st.builds(Exited, worker_id=_text, exit_code=st.none() | st.integers(-64, 255), detail=_text),
)


@given(_messages)
def test_a_message_is_decoded_as_it_was_encoded(message: Message) -> None:
    assert decode(encode(message)) == message


def test_what_json_has_no_words_for_cannot_be_encoded() -> None:
    with pytest.raises(TypeError):
        encode(Configure("a:b", {"oops": object()}, [], "/tmp", [], None, 1.0))
