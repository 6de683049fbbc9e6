//! A file of Rust, taken apart just far enough for the rules: code without comments, strings and
//! tests, and the plain comments by themselves. Not a parser: it knows tokens, not grammar.

/// One file, split into what the rules look at. Line numbers are those of the file.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// The code, line by line: comments and the contents of strings are gone.
    pub(crate) code: Vec<String>,
    /// Plain `//` comments: line number (from 1) and text. Documentation comments are not among them.
    pub(crate) comments: Vec<(usize, String)>,
}

impl Source {
    /// Splits `text`.
    pub(crate) fn read(text: &str) -> Self {
        let mut lexer = Lexer { rest: text, code: String::new(), comments: Vec::new() };
        lexer.run();
        Self { code: lexer.code.lines().map(str::to_owned).collect(), comments: lexer.comments }
    }

    /// The same without anything that exists for tests alone. Removed lines are left blank.
    pub(crate) fn without_tests(mut self) -> Self {
        let mut line = 0;
        while line < self.code.len() {
            if !self.code[line].trim_start().starts_with("#[cfg(test)]") {
                line += 1;
                continue;
            }
            let mut depth = 0_i64;
            while line < self.code.len() {
                let text = std::mem::take(&mut self.code[line]);
                depth += count(&text, '{') - count(&text, '}');
                line += 1;
                let is_attribute = text.trim_start().starts_with("#[") && text.ends_with(']');
                if depth == 0 && !is_attribute && text.trim_end().ends_with(['}', ';', ',']) {
                    break;
                }
            }
        }
        self
    }

    /// How many lines hold code.
    pub(crate) fn code_lines(&self) -> usize {
        self.code.iter().filter(|line| !line.trim().is_empty()).count()
    }
}

fn count(text: &str, wanted: char) -> i64 {
    text.chars().map(|c| i64::from(c == wanted)).sum()
}

struct Lexer<'a> {
    rest: &'a str,
    code: String,
    comments: Vec<(usize, String)>,
}

impl Lexer<'_> {
    fn run(&mut self) {
        while let Some(next) = self.rest.chars().next() {
            if self.rest.starts_with("//") {
                self.line_comment();
            } else if self.rest.starts_with("/*") {
                self.block_comment();
            } else if let Some(hashes) = raw_string(self.rest) {
                let open = self.rest.find('"').map_or(0, |at| at + 1);
                let close = format!("\"{}", "#".repeat(hashes));
                let body = &self.rest[open..];
                let length = open + body.find(&close).map_or(body.len(), |at| at + close.len());
                self.skip(length, "\"\"");
            } else if next == '"' {
                let length = string_length(self.rest);
                self.skip(length, "\"\"");
            } else if let Some(length) = char_length(self.rest) {
                self.skip(length, "''");
            } else {
                self.code.push(next);
                self.rest = &self.rest[next.len_utf8()..];
                // A word is copied whole, so that the r of `for"` never looks like a raw string.
                if next.is_alphanumeric() || next == '_' {
                    self.word();
                }
            }
        }
    }

    fn word(&mut self) {
        let end =
            self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        self.code.push_str(&self.rest[..end]);
        self.rest = &self.rest[end..];
    }

    fn line_comment(&mut self) {
        let end = self.rest.find('\n').unwrap_or(self.rest.len());
        let text = &self.rest[2..end];
        if !text.starts_with(['/', '!']) {
            let line = self.code.matches('\n').count() + 1;
            self.comments.push((line, text.trim().to_owned()));
        }
        self.rest = &self.rest[end..];
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        let mut at = 0;
        loop {
            let tail = &self.rest[at..];
            if tail.starts_with("/*") {
                depth += 1;
                at += 2;
            } else if tail.starts_with("*/") {
                depth -= 1;
                at += 2;
            } else if let Some(next) = tail.chars().next() {
                at += next.len_utf8();
            }
            if depth == 0 || at >= self.rest.len() {
                break;
            }
        }
        self.skip(at, "");
    }

    /// Leaves out `length` bytes but keeps their line ends, so that line numbers stay true.
    fn skip(&mut self, length: usize, instead: &str) {
        self.code.push_str(instead);
        let newlines = self.rest[..length].matches('\n').count();
        self.code.extend(std::iter::repeat_n('\n', newlines));
        self.rest = &self.rest[length..];
    }
}

/// How many `#` a raw string that starts here has.
fn raw_string(text: &str) -> Option<usize> {
    let text = text.strip_prefix('b').or_else(|| text.strip_prefix('c')).unwrap_or(text);
    let text = text.strip_prefix('r')?;
    let hashes = text.len() - text.trim_start_matches('#').len();
    text[hashes..].starts_with('"').then_some(hashes)
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a character literal that starts here; a lifetime is none.
fn char_length(text: &str) -> Option<usize> {
    let body = text.strip_prefix('\'')?;
    if let Some(escape) = body.strip_prefix('\\') {
        let after = escape.char_indices().nth(1)?.0;
        return Some(2 + after + escape[after..].find('\'')? + 1);
    }
    let (end, quote) = body.char_indices().nth(1)?;
    (quote == '\'').then_some(1 + end + 1)
}

#[test]
fn code_is_what_is_left_without_comments_strings_and_tests() {
    let text = r####"//! Doc.
use std::fs; // why
/* a /* nested */ block
over lines */ let a = "tokio // not a comment";
let b = r#"std::env "quoted" "#; let c = '"'; let d: &'static str = "\"";
let e = b'\''; // last

#[cfg(test)]
#[expect(clippy::all)]
mod tests {
    use tokio as _;
}
fn after() {}
"####;
    let source = Source::read(text);
    let words = ["tokio", "env", "Doc", "nested", "quoted"];
    let code = source.code.join("\n");
    assert_eq!(words.map(|word| code.contains(word)), [true, false, false, false, false]);
    assert_eq!(source.comments, [(2, "why".to_owned()), (6, "last".to_owned())]);
    assert_eq!(source.code.len(), text.lines().count());
    let source = source.without_tests();
    assert!(!source.code.join("\n").contains("tokio"));
    assert_eq!(source.code[12], "fn after() {}");
    assert_eq!(source.code_lines(), 5);
}
