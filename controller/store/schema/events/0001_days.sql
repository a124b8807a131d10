-- The events taken in on one day. Numbers of 64 bits without sign are 8 bytes, big-endian.

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value NOT NULL
) WITHOUT ROWID;

CREATE TABLE probe (count INTEGER NOT NULL);
INSERT INTO probe VALUES (0);

-- Texts that events repeat: users, actions, effects, ids of defenders.
CREATE TABLE names (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

-- How far each defender's events are stored, one row an epoch. A new day begins with those of the day before.
CREATE TABLE chains (
    id INTEGER PRIMARY KEY,
    defender TEXT NOT NULL,
    agent TEXT NOT NULL,        -- the name that the defender's chain begins with
    epoch BLOB NOT NULL,
    seq INTEGER NOT NULL,       -- of the last stored record
    chain BLOB NOT NULL,        -- of the last stored record
    closed INTEGER NOT NULL,    -- whether that was the epoch's closing record
    used INTEGER NOT NULL,      -- rises with every use: the defender's present epoch has its highest
    gaps INTEGER NOT NULL,      -- times that something was missing or put aside
    received INTEGER NOT NULL,  -- when the last record came, unix time, microseconds
    UNIQUE (defender, epoch)
);

-- The events at `first_position` and the `count - 1` behind it are records `first_seq` and following.
CREATE TABLE batches (
    first_position INTEGER PRIMARY KEY,
    count INTEGER NOT NULL,
    chain_id INTEGER NOT NULL REFERENCES chains (id),
    first_seq INTEGER NOT NULL,
    previous BLOB NOT NULL,     -- chain before the first of them, empty if nobody knows it
    chain BLOB NOT NULL,        -- of the last of them
    received INTEGER NOT NULL   -- unix time, microseconds
);
CREATE INDEX batches_by_seq ON batches (chain_id, first_seq);

CREATE TABLE events (
    position INTEGER PRIMARY KEY,
    t INTEGER NOT NULL,         -- when it was recorded, unix time, microseconds
    defender INTEGER NOT NULL,  -- whom it is about: this and the next three are ids of names
    user INTEGER NOT NULL,
    action INTEGER NOT NULL,
    effect INTEGER NOT NULL,
    payload BLOB NOT NULL       -- as it came
);
CREATE INDEX events_by_time ON events (t, position, defender, user, action, effect);

-- Records that do not continue the chain that is stored, as they came.
CREATE TABLE quarantine (
    id INTEGER PRIMARY KEY,
    received INTEGER NOT NULL,
    defender TEXT NOT NULL,
    agent TEXT NOT NULL,
    epoch BLOB NOT NULL,
    first_seq INTEGER NOT NULL,
    previous BLOB NOT NULL,
    digest BLOB NOT NULL,       -- SHA-256 of the records
    records BLOB NOT NULL,
    reason TEXT NOT NULL,
    UNIQUE (defender, epoch, first_seq, digest)
);
