"""Users, sessions, rooms and messages in SQLite."""

import os
import secrets
import sqlite3
import threading
import time
from typing import Any

from pydantic import BaseModel

SCHEMA = """
CREATE TABLE IF NOT EXISTS users (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS sessions (token TEXT PRIMARY KEY, user INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS rooms (name TEXT PRIMARY KEY, title TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY, room TEXT NOT NULL, user INTEGER NOT NULL, text TEXT NOT NULL,
    key TEXT NOT NULL, time REAL NOT NULL, UNIQUE (user, key)
);
CREATE INDEX IF NOT EXISTS messages_by_room ON messages (room, id);
INSERT OR IGNORE INTO rooms VALUES ('lobby', 'Lobby'), ('kitchen', 'Kitchen'), ('music', 'Music');
"""
MESSAGES = """
SELECT messages.id, messages.user, users.name AS author, text, key, time
FROM messages JOIN users ON users.id = messages.user
"""


class User(BaseModel):
    """A user."""

    id: int
    name: str


class Room(BaseModel):
    """A room: the channel `room:NAME`."""

    name: str
    title: str


class Message(BaseModel):
    """A message; `key` is its sender's, `time` is in Unix seconds."""

    id: int
    user: int
    author: str
    text: str
    key: str
    time: float


class Database:
    """The database of one host, in the file `CHAT_DATABASE`; all methods may be called at once.

    Nodes on several hosts need a database that they share, such as PostgreSQL.
    """

    def __init__(self, path: str = "") -> None:
        path = path or os.environ.get("CHAT_DATABASE", "chat.db")
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        self._connection.executescript("PRAGMA journal_mode = WAL;" + SCHEMA)

    def sign_in(self, name: str) -> tuple[User, str]:
        """Return a user, and the token of a new session."""
        token = secrets.token_urlsafe(24)
        self._run("INSERT OR IGNORE INTO users (name) VALUES (?)", name)
        (found,) = self._run("SELECT id, name FROM users WHERE name = ?", name)
        self._run("INSERT INTO sessions VALUES (?, ?)", token, found["id"])
        return User(**found), token

    def user_of(self, session: str) -> User | None:
        """Return the user of a session."""
        query = "SELECT id, name FROM users JOIN sessions ON user = id WHERE token = ?"
        found = self._run(query, session)
        return User(**found[0]) if found else None

    def rooms(self) -> list[Room]:
        """Return all rooms."""
        return [Room(**row) for row in self._run("SELECT * FROM rooms ORDER BY rowid")]

    def room(self, name: str) -> Room | None:
        """Return a room."""
        found = self._run("SELECT * FROM rooms WHERE name = ?", name)
        return Room(**found[0]) if found else None

    def rename(self, name: str, title: str) -> Room | None:
        """Rename a room."""
        self._run("UPDATE rooms SET title = ? WHERE name = ?", title, name)
        return self.room(name)

    def keep(self, room: str, user: int, text: str, key: str) -> Message:
        """Keep a message; one that is kept already is returned as it was."""
        self._run(
            "INSERT OR IGNORE INTO messages (room, user, text, key, time) VALUES (?, ?, ?, ?, ?)",
            *(room, user, text, key, time.time()),
        )
        (row,) = self._run(MESSAGES + "WHERE user = ? AND key = ?", user, key)
        return Message(**row)

    def messages(self, room: str, before: int, count: int) -> list[Message]:
        """Return messages of a room before one of them, oldest first."""
        query = MESSAGES + "WHERE room = ? AND messages.id < ? ORDER BY messages.id DESC LIMIT ?"
        return [Message(**row) for row in reversed(self._run(query, room, before, count))]

    def _run(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        with self._lock:
            return [dict(row) for row in self._connection.execute(statement, values)]
