//! Rules about how a file reads: what opens it, how long it is, what is never written in it.

use super::source::Source;
use super::tree::File;

/// Code lines that a file may have, tests and comments not counted.
pub(crate) const CEILING: usize = 400;

/// Files that were longer when they were written. A number here only ever goes down.
pub(crate) const LONGER: &[(&str, usize)] = &[];

/// A number of [`LONGER`] may stand this far above the file before it has to be lowered.
const SLACK: usize = 20;

/// Words that name no purpose.
const EMPTY_NAMES: [&str; 8] =
    ["util", "utils", "common", "helper", "helpers", "manager", "misc", "mod"];

/// Left-overs: the work is finished or it is not merged.
const UNFINISHED: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];

/// What has no place in a project that speaks of itself alone. Compared without case, whole words.
const OUTSIDE: [&str; 8] = [
    concat!("clau", "de"),
    concat!("anthro", "pic"),
    concat!("open", "ai"),
    concat!("chat", "gpt"),
    concat!("co", "pilot"),
    concat!("language ", "model"),
    concat!("issues ", "show"),
    concat!("deps", "hub"),
];

/// Hosts that a machine without them, or with mirrors of them, must not be pointed at.
const REGISTRIES: [&str; 9] = [
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
    concat!("npmjs", ".com"),
    concat!("npmjs", ".org"),
    concat!("docker", ".io"),
    concat!("ghcr", ".io"),
    concat!("quay", ".io"),
    concat!("proxy.golang", ".org"),
];

/// Everything that is wrong with how `file` reads.
pub(crate) fn problems(file: &File) -> Vec<String> {
    let mut problems = words(file);
    if file.is_rust() {
        problems.extend(name(file));
        problems.extend(opening(file));
        problems.extend(length(file));
        problems.extend(comments(file));
        problems.extend(ignored_tests(file));
    }
    problems.into_iter().map(|problem| format!("{}: {problem}", file.path)).collect()
}

fn name(file: &File) -> Option<String> {
    let stem = file.path.rsplit('/').next()?.strip_suffix(".rs")?;
    EMPTY_NAMES
        .contains(&stem)
        .then(|| format!("a module called `{stem}` owns nothing: name what it is for"))
}

fn opening(file: &File) -> Option<String> {
    (!file.text.starts_with("//!"))
        .then(|| "open the file with `//!`: what it owns, what it refuses to do".to_owned())
}

fn length(file: &File) -> Option<String> {
    if file.is_test() {
        return None;
    }
    let lines = Source::read(&file.text).without_tests().code_lines();
    let listed = LONGER.iter().find(|(path, _)| *path == file.path);
    check_length(lines, listed.map(|(_, lines)| *lines))
}

fn check_length(lines: usize, listed: Option<usize>) -> Option<String> {
    match listed {
        None if lines > CEILING => {
            Some(format!("{lines} code lines; {CEILING} is the ceiling: split it"))
        }
        Some(ceiling) if lines > ceiling => {
            Some(format!("{lines} code lines, {ceiling} before: it may only get shorter"))
        }
        Some(_) if lines <= CEILING => {
            Some("below the ceiling now: take it off the list in tests/tests/tidy/text.rs".into())
        }
        Some(ceiling) if lines + SLACK < ceiling => {
            Some(format!("{lines} code lines: lower its number in tests/tests/tidy/text.rs"))
        }
        _ => None,
    }
}

fn comments(file: &File) -> Vec<String> {
    let source = Source::read(&file.text);
    let found = source.comments.iter().filter(|(_, text)| is_code(text));
    found.map(|(line, _)| format!("line {line}: code in a comment; delete it")).collect()
}

fn is_code(comment: &str) -> bool {
    let statement = comment.ends_with(';')
        && (comment.contains('(') || comment.contains(" = ") || comment.starts_with("use "));
    let block = comment.ends_with(" {") || comment == "}" || comment == "});";
    statement || block
}

fn ignored_tests(file: &File) -> Vec<String> {
    let code = Source::read(&file.text).code;
    let found = code.iter().enumerate().filter(|(_, line)| line.contains("#[ignore"));
    found.map(|(at, _)| format!("line {}: a test that nobody runs", at + 1)).collect()
}

fn words(file: &File) -> Vec<String> {
    // The lock file is cargo's.
    if file.path == "Cargo.lock" {
        return Vec::new();
    }
    let mut problems = Vec::new();
    for (at, line) in file.text.lines().enumerate() {
        let lower = line.to_lowercase();
        let found = UNFINISHED.into_iter().find(|word| has_word(line, word));
        let found = found.or_else(|| OUTSIDE.into_iter().find(|word| has_word(&lower, word)));
        let found = found.or_else(|| REGISTRIES.into_iter().find(|host| lower.contains(host)));
        if let Some(word) = found {
            problems.push(format!("line {}: {word:?} has no place in the tree", at + 1));
        }
        if issue_number(&lower) {
            problems.push(format!("line {}: say what it is, not its number", at + 1));
        }
    }
    problems
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        ![before, after].into_iter().flatten().any(|c| c.is_alphanumeric() || c == '_')
    })
}

/// The number of an entry in a tracker that the reader does not have.
fn issue_number(line: &str) -> bool {
    line.match_indices("issue ").any(|(at, word)| {
        line[at + word.len()..].trim_start_matches('#').starts_with(|c: char| c.is_ascii_digit())
    })
}

#[test]
fn every_rule_fires() {
    let good = "//! Owns the door.\n// why: the lock comes first\nfn open() {}\n";
    assert_eq!(problems(&File::new("door/src/hinge.rs", good)), [""; 0]);
    let long = "fn line() {}\n".repeat(CEILING);
    let cases = [
        ("a/src/mod.rs", "//! x\n".to_owned(), "owns nothing"),
        ("a/src/helpers.rs", "//! x\n".to_owned(), "owns nothing"),
        ("a/src/door.rs", "fn open() {}\n".to_owned(), "open the file with"),
        ("a/src/door.rs", format!("//! x\n{long}fn more() {{}}\n"), "401 code lines"),
        ("a/src/door.rs", "//! x\n// let a = 1;\n".to_owned(), "code in a comment"),
        ("a/src/door.rs", "//! x\n// if a {\n".to_owned(), "code in a comment"),
        ("a/src/door.rs", "//! x\n#[ignore]\nfn open() {}\n".to_owned(), "nobody runs"),
        ("a/src/door.rs", format!("//! x\n// {}: paint\n", UNFINISHED[0]), "no place"),
        ("docs/door.md", format!("made by {}\n", OUTSIDE[0].to_uppercase()), "no place"),
        ("Makefile", format!("pull {}/a\n", REGISTRIES[5]), "no place"),
        ("docs/door.md", format!("see issue {}\n", 12), "not its number"),
        ("docs/door.md", format!("see issue #{}\n", 12), "not its number"),
    ];
    for (path, text, expected) in cases {
        let found = problems(&File::new(path, &text));
        assert!(found.len() == 1 && found[0].contains(expected), "{path} {text:.40}: {found:?}");
    }
}

#[test]
fn a_long_file_may_only_get_shorter() {
    for (lines, listed, expected) in [
        (CEILING, None, None),
        (CEILING + 1, None, Some("ceiling")),
        (500, Some(500), None),
        (501, Some(500), Some("only get shorter")),
        (500 - SLACK, Some(500), None),
        (499 - SLACK, Some(500), Some("lower its number")),
        (CEILING, Some(500), Some("off the list")),
    ] {
        let found = check_length(lines, listed);
        assert_eq!(found.is_some(), expected.is_some(), "{lines} {listed:?}: {found:?}");
        assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()));
    }
}
