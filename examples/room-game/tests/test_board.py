"""The rules of the game."""

from room_game.board import DOTS, HEIGHT, PLAYERS, WIDTH, Board, Move, Player


def test_a_dot_is_collected_once() -> None:
    """Another one appears instead."""
    row = [(x, 0) for x in range(DOTS - 1)]
    board = Board(players={"ann": Player(name="Ann", x=3, y=3)}, dots=[(4, 3), *row])
    board.play({"ann": "Ann"}, [("ann", Move(number=1, go="right"))])
    assert board.players["ann"].score == 1
    assert len(set(board.dots)) == DOTS
    board.dots = [(4, 3), *row]
    board.play({"ann": "Ann"}, [("ann", Move(number=1, go="right"))])
    assert (board.players["ann"].x, board.players["ann"].score) == (4, 1)


def test_players_stay_on_the_board() -> None:
    """At its edge a step leads nowhere."""
    board = Board()
    for turn, go in enumerate(["left", "up", "right", "down"]):
        for step in range(1, WIDTH + 1):
            move = Move.model_validate({"number": turn * WIDTH + step, "go": go})
            board.play({"ann": "Ann"}, [("ann", move)])
        player = board.players["ann"]
        assert 0 <= player.x < WIDTH
        assert 0 <= player.y < HEIGHT
    assert (player.x, player.y) == (WIDTH - 1, HEIGHT - 1)


def test_players_that_have_left_are_forgotten_when_there_are_too_many() -> None:
    """Those with the lowest scores first; nobody who is here."""
    board = Board()
    gone = {str(number): Player(name="x", score=number) for number in range(PLAYERS)}
    board.players = gone | {"ann": Player(name="Ann")}
    board.play({"ann": "Ann"}, [])
    assert len(board.players) == PLAYERS
    assert "0" not in board.players
    assert "ann" in board.players
