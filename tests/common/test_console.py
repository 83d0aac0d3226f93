"""Look at what is said in the terminal."""

from groundup.common.console import say


def test_a_message_is_printed_as_it_is(capsys):
    message = "no file or folder my:cat:[red]/[/red].txt"
    say(message)
    assert capsys.readouterr().err == f"{message}\n"
