"""The configuration file: what it takes, and what it says of mistakes."""

from __future__ import annotations

import math

import pytest

from zfsfs.config import CacheRules, Config, KeepFailed, Publish, builder_option, explanation, load, parse
from zfsfs.errors import UsageError
from zfsfs.names import CacheName
from zfsfs.store import Policy, Publishers

WHOLE = """
linger = 1.5
awake = false
keep-failed = "10/7d"
[builder.make]
command = "make -C 'a b'"
user = 1000
group = 0
environment = { CC = "ccache gcc" }
time-limit = "2h"
kill-grace = 3
limits = { nofile = 1024, as = "2G" }
log-size = "64K"
native = false
sandbox = ["bwrap", "--bind", "/", "/", "{command}"]
[[builder.make.cache]]
name = "ccache"
label = "x"
variable = "CCACHE_DIR"
publish = "always"
"""


def test_everything_at_once():
    config = parse(WHOLE, "file")
    assert (config.linger, config.keep_failed, config.awake) == (1.5, KeepFailed(10, 7 * 86400.0), False)
    make = config.builders["make"]
    assert make.command == ("make", "-C", "a b")
    assert (make.user, make.group, make.time_limit, make.kill_grace) == (1000, 0, 7200.0, 3.0)
    assert (dict(make.limits), make.log_size, make.native) == ({"nofile": 1024, "as": 1 << 31}, 65536, False)
    assert make.sandbox[-1] == "{command}"
    assert make.caches[0].name == CacheName(b"ccache")
    assert (make.caches[0].label, make.caches[0].variable, make.caches[0].publish) == (
        b"x", "CCACHE_DIR", Publish.ALWAYS,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", "file: "),
        ("awake = 1", "awake = 1: it must be true or false"),
        ("liger = 1", "there is no key 'liger'; did you mean 'linger'?"),
        ("builder = 1", "builder must be a table"),
        ("[builder.a]", "a builder needs a command"),
        ("[builder.a]\ncommand = 1", "command = 1: it must be a command"),
        ("[builder.a]\ncommand = []", "it must be a command"),
        ('[builder.a]\ncommand = "a \'b"', "No closing quotation"),
        ('[builder.a]\ncommand = "x"\ntime-limit = true', "time-limit = True: it must be a time"),
        ('[builder.a]\ncommand = "x"\nlog-size = "1T"', "it must be a size"),
        ('[builder.a]\ncommand = "x"\nuser = "no such user"', "it must be a user that exists"),
        ('[builder.a]\ncommand = "x"\nlimits = { files = 1 }', "a table with keys out of"),
        ('[builder.a]\ncommand = "x"\nenvironment = { A = 1 }', "a table of texts"),
        ('[builder.a]\ncommand = "x"\ntime-limt = 1', "builder a: there is no key 'time-limt'; did you mean"),
        ('[builder."a+b"]\ncommand = "x"', "a builder's name is of letters"),
        ('[builder.a]\ncommand = "x"\ncache = 1', "cache must be an array"),
        ('[builder.a]\ncommand = "x"\n[[builder.a.cache]]', "cache 1 needs a name"),
        ('[builder.a]\ncommand = "x"\n[[builder.a.cache]]\nname = "a@b"', "the name of a cache"),
        ('[builder.a]\ncommand = "x"\n[[builder.a.cache]]\nname = "a"\npublish = 1', "'always', 'on-success' or"),
        ('[builder.a]\ncommand = "x"\n[[builder.a.cache]]\nname = "a"\nlabel = ""', "can only be published always"),
        ('[cache.c]\npolcy = "never"', "cache c: there is no key 'polcy'; did you mean 'policy'?"),
        ('[cache.c]\npolicy = "some"', "it must be 'always', 'on-success', 'never', 'locked' or 'read-only'"),
        ('[cache.c]\npublishers = "no such user"', "it must be users and groups that exist"),
        ('[cache."c@d"]', "cache c@d: it must be the name of a cache"),
        ("cache = 1", "cache must be a table"),
        ("[cahce.c]", "did you mean 'cache'?"),
        ("keep-failed = 'many'", "a number of builds"),
        ("linger = 1" + "0" * 400, "it must be a time"),
        ("linger = '1" + "0" * 400 + "s'", "it must be a time"),
        ("linger = 1" + "0" * 5000, "file: "),
        ("linger = '1" + "0" * 5000 + "'", "it must be a time"),
        ("keep-failed = '1/1" + "0" * 400 + "w'", "it must be a time"),
        ('[builder.a]\ncommand = "x"\nlog-size = "1' + "0" * 5000 + '"', "it must be a size"),
        ('[builder.a]\ncommand = "x"\nlimits = { as = 9223372036854775808 }', "it must be a size"),
    ],
)
def test_a_mistake_names_the_file_the_key_and_what_it_must_be(text, said):
    with pytest.raises(UsageError) as caught:
        parse(text, "file")
    assert str(caught.value).startswith("file: ")
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_is_not_there(tmp_path):
    assert load(None, "no/such/pool") == Config()
    with pytest.raises(UsageError, match="no such file"):
        load(str(tmp_path / "none"), "pool")


def test_the_option_for_one_builder():
    name, builder = builder_option("cc=gcc -o 'a b' main.c")
    assert (name, builder.command) == ("cc", ("gcc", "-o", "a b", "main.c"))
    for text in ("cc", "=gcc", "a+b=gcc", "cc="):
        with pytest.raises(UsageError):
            builder_option(text)
    assert parse("keep-failed = 3", "f").keep_failed == KeepFailed(3, math.inf)


def test_every_key_is_explained():
    for key in ("linger", "command", "time-limit", "sandbox", "publish", "native", "policy", "publishers"):
        assert key in explanation()


def test_the_rules_of_caches():
    found = parse('[cache.c]\npolicy = "locked"\n[cache.d]\npublishers = "root,@0"', "f").caches
    assert found[CacheName(b"c")] == CacheRules(Policy.LOCKED)
    assert found[CacheName(b"d")] == CacheRules(None, Publishers.of("root,@0"))
