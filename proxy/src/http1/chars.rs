//! Which bytes may stand where: one table of byte classes, and the few scans made with it.

/// RFC 9110 `tchar`: methods, field names, connection options.
pub(crate) const TOKEN: u8 = 1;
/// A byte of a request target that every parser reads alike. `#` and `\` are printable and still
/// refused: some servers cut the target at the one, some turn the other into `/`.
pub(crate) const TARGET: u8 = 2;
/// A byte of a host name. Percent-encoding and sub-delimiters are in the URI grammar, but no name
/// that resolves has them, and `,` or `@` would make two readings of one host.
pub(crate) const HOST: u8 = 4;
/// A byte of a field value: printable, space, tab, or obs-text.
pub(crate) const VALUE: u8 = 8;

static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte: u8 = 0;
    loop {
        let alphanumeric = byte.is_ascii_alphanumeric();
        let mut class = 0;
        if alphanumeric || is_token_mark(byte) {
            class |= TOKEN;
        }
        if byte.is_ascii_graphic() && byte != b'#' && byte != b'\\' {
            class |= TARGET;
        }
        if alphanumeric || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            class |= HOST;
        }
        if byte >= b' ' && byte != 0x7f || byte == b'\t' {
            class |= VALUE;
        }
        table[byte as usize] = class;
        if byte == 255 {
            return table;
        }
        byte += 1;
    }
}

const fn is_token_mark(byte: u8) -> bool {
    matches!(
        byte,
        b'!' | b'#'
            | b'$'
            | b'%'
            | b'&'
            | b'\''
            | b'*'
            | b'+'
            | b'-'
            | b'.'
            | b'^'
            | b'_'
            | b'`'
            | b'|'
            | b'~'
    )
}

#[inline]
pub(crate) fn is(class: u8, byte: u8) -> bool {
    CLASSES[usize::from(byte)] & class != 0
}

/// How many leading bytes are of this class.
#[inline]
pub(crate) fn run(class: u8, bytes: &[u8]) -> usize {
    bytes.iter().position(|&byte| !is(class, byte)).unwrap_or(bytes.len())
}

pub(crate) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && run(TOKEN, bytes) == bytes.len()
}

/// The first byte that may not stand in a field value. Values are most of a head, so eight bytes
/// are tested at a time; a word with a control byte in it (a tab is one) is then read bytewise.
#[inline]
pub(crate) fn find_bad_value_byte(bytes: &[u8]) -> Option<u8> {
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let word: [u8; 8] = word.try_into().expect("chunks of eight");
        if has_control(u64::from_ne_bytes(word))
            && let Some(&bad) = word.iter().find(|&&byte| !is(VALUE, byte))
        {
            return Some(bad);
        }
    }
    words.remainder().iter().copied().find(|&byte| !is(VALUE, byte))
}

/// Whether any of eight bytes is below 0x20 or is 0x7f.
fn has_control(word: u64) -> bool {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    let below_space = word.wrapping_sub(ONES * 0x20) & !word;
    let delete = word ^ (ONES * 0x7f);
    let is_delete = delete.wrapping_sub(ONES) & !delete;
    (below_space | is_delete) & HIGH != 0
}

/// Without optional whitespace (space, tab) before it.
#[inline]
pub(crate) fn trim_start(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    bytes
}

/// Without optional whitespace (space, tab) after it.
#[inline]
pub(crate) fn trim_end(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The elements of a comma-separated list, trimmed, without the empty ones.
pub(crate) fn list_elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|&byte| byte == b',')
        .map(|element| trim_end(trim_start(element)))
        .filter(|element| !element.is_empty())
}
