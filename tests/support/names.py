"""Gives names that are hard on stores, tars, tables, terminals and pages: by rule, and picked by hand."""

import unicodedata

SIGNS = (
    *" !\"#$%&'()+,-.;<=>@[]^_`{|}~\\:*?",
    *("\t", "\n", "\r", "\x1b", "\x07", "\x7f", "\x85"),
    *("\u202e", "\u2066", "\u200b", "\u200d", "\ufeff", "\u2028", "\xa0", "\u3000", "\uffff"),
    *("é", "e\u0301", "ß", "İ", "ı", "日本", "שלום", "😀", "👩‍👩‍👧", "\U000e0061", "ﬀ", "Å"),
    *("::", "%2e", "%2F", "%00", "%", "%zz", "&amp;", "$HOME", "${x}", "`id`", "$(id)", "||", "&&", "..", "__"),
)
WORDS = (
    *("CON", "NUL", "aux", "COM1", "LPT1", "con.a.b", "Thumbs.db", "desktop.ini"),
    *("a::b", "s3::x", "simplecache::a", "file:x", "memory:", "http:x", "C:x"),
    *(
        "*",
        "?",
        "[a]",
        "[!a]",
        "[",
        "]",
        "**",
        "a[0-9]b",
        "{a,b}",
        "{}",
        "{key}",
        "{0}",
        "{key.__class__}",
        "%s",
        "%(a)s",
    ),
    *("a.b.c", "a..b", "a.tar", "a.json", "a.edited", "a.source", "a.png", "a.PNG"),
    *("__init__", "__a__", "_", "__", "-", "--help", "-rf", "~", "~root", "#1", "?x=1", "?versionId=1", "a?b=c&d=e"),
    *("[red]", "[/nope]", "[bold]a[/bold]", ":smile:", "<script>alert(1)<", "<!--", "]]>", "a|b", "| --- |", "**b**"),
    *("None", "null", "nan", "true", "0", "007", "1e5", "0x10", "-1", "1,2", "a;b", "=1+1", "@sum", "train", "test"),
    *("plan", "data", "manifest", "run", "commit", "metadata", "README", "a b  c", " a", "a ", "a."),
    *("metadata.parquet", "\\\\server\\share", "..\\a", "a\\b", "\\", "'", '"', "''", "a'b\"c", "a\u0301\u0301\u0301"),
    *(
        "Twin",
        "twin",
        "TWIN",
        "Straße",
        "STRASSE",
        unicodedata.normalize("NFC", "é"),
        unicodedata.normalize("NFD", "é"),
    ),
    *("\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x1b]8;;x\x07y", "\u202egnp.exe", "a\u2066b\u2069", "a\r\nb"),
    *("x" * 251, "é" * 125, "😀" * 62, "a." * 125, "%" * 251, "_" * 251),
)


BY_RULE = tuple(before + sign + after for sign in SIGNS for before, after in (("", "a"), ("a", "b"), ("a", "")))

FILES = tuple(dict.fromkeys(f"{name}.png" for name in (*BY_RULE, *WORDS)))
"""Names of files in a folder on Linux, in UTF-8."""

PATHS = (
    "a/b.png",
    "a b/c d.png",
    "A/b.png",
    "__a__/b.png",
    "v1.2/b.png",
    "%2e%2e/b.png",
    "-/b.png",
    "~/b.png",
    "[1]/b.png",
    "*/b.png",
    "#/b.png",
    "a::b/c.png",
    "\\/b.png",
    "CON/aux.png",
    "é/ñ.png",
    "/".join("d" * 200) + "/deep.png",
    f"{'f' * 250}/{'g' * 250}/h.png",
)
"""Paths of files in folders."""

FOREIGN = (
    *("/abs.png", "//abs.png", "../up.png", "../../../../etc/up.png", "a/../b.png", "a//b.png", "a/b/../../c.png"),
    *("..", ".", "...", "..png", "...png", ".hidden.png", ".", "a/.", "q/", "/", "//", "a/.png", "._x.png"),
    *("nul\0.png", "\0", "k" * 255 + ".png", "k" * 5000, "😀" * 300, f"{'é' * 300}/{'é' * 300}.png", "no extension"),
    *(
        "/".join(["folder"] * 200) + "/x.png",
        "C:\\x.png",
        "file:///etc/passwd",
        "s3://bucket/x.png",
        "a://b",
        "x" * 256,
    ),
)
"""Keys in tables and members of tars, which no folder holds."""

NAMES = tuple(dict.fromkeys((*FILES, *PATHS, *FOREIGN)))
