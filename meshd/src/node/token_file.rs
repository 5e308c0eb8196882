//! A token as somebody saved it: in a file, or on standard input.

use std::io::{self, Read};

use mesh_host::files::decoded;

/// The longest text that is read; a token has less than a kilobyte.
const MAX_TOKEN: u64 = 64 * 1024;
/// What editors of other systems write before a text in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Why there is no token in a file.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// It cannot be read.
    #[error(
        "cannot read the token from {from}: {error}; give it with `--token-file FILE`, or on standard input with `-`"
    )]
    Read {
        /// Where from.
        from: String,
        /// Why.
        error: io::Error,
    },
    /// It is a directory.
    #[error("cannot read the token from {0}: it is a directory; name the file in it that holds the token")]
    Directory(String),
    /// It is empty.
    #[error(
        "{0} is empty, and no token; a command that was to write one there failed: run it again, and look at what it says"
    )]
    Empty(String),
    /// It is too long.
    #[error("{from} is longer than {} KiB, and no token; name the file that holds it", MAX_TOKEN >> 10)]
    Long {
        /// Where from.
        from: String,
    },
    /// It is UTF-16.
    #[error(
        "{0} is UTF-16, as PowerShell writes it, and not UTF-8; save it as UTF-8, or paste the token with `meshd join -`"
    )]
    Utf16(String),
    /// It is no text.
    #[error("{from}:{line}:{column}: this is not UTF-8, and no token; copy the token again as one line")]
    Binary {
        /// Where from.
        from: String,
        /// The line, from 1.
        line: usize,
        /// The character of the line, from 1.
        column: usize,
    },
}

/// Reads a token's text; `from` is for the messages. A byte order mark is left out.
///
/// # Errors
/// `TokenFileError` if it cannot be read, or is none.
pub(crate) fn read<R: Read>(from: &str, open: impl FnOnce() -> io::Result<R>) -> Result<String, TokenFileError> {
    let mut bytes = Vec::new();
    let read = open().and_then(|reader| reader.take(MAX_TOKEN + 1).read_to_end(&mut bytes));
    match read {
        Ok(length) if length as u64 > MAX_TOKEN => Err(TokenFileError::Long { from: from.into() }),
        Ok(_) => text(from, &bytes),
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => Err(TokenFileError::Directory(from.into())),
        Err(error) => Err(TokenFileError::Read { from: from.into(), error }),
    }
}

fn text(from: &str, bytes: &[u8]) -> Result<String, TokenFileError> {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(TokenFileError::Utf16(from.into()));
    }
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    let text = decoded(bytes.to_vec());
    let text = text.map_err(|(line, column)| TokenFileError::Binary { from: from.into(), line, column })?;
    if text.trim().is_empty() { Err(TokenFileError::Empty(from.into())) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs::File;
    use std::path::Path;

    use super::*;

    fn said(path: &Path) -> String {
        read("/t", || File::open(path)).unwrap_err().to_string()
    }

    fn said_of(bytes: &[u8]) -> String {
        read("/t", || Ok(bytes)).unwrap_err().to_string()
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_token() {
        assert_eq!(read("/t", || Ok(&b"\xef\xbb\xbfmesh1_x\n"[..])).unwrap(), "mesh1_x\n");
        assert_eq!(read("/t", || Ok(&b"mesh1_x"[..])).unwrap(), "mesh1_x");
    }

    #[test]
    fn a_file_without_a_token_is_told_by_what_it_is() {
        for empty in [&b""[..], b" \n\n", b"\xef\xbb\xbf"] {
            assert!(said_of(empty).starts_with("/t is empty, and no token"), "{}", said_of(empty));
        }
        assert!(said_of(b"\xffmesh1_x").starts_with("/t:1:1: this is not UTF-8"));
        assert!(said_of(b"\xef\xbb\xbf\x80").starts_with("/t:1:1: "), "the mark is not counted");
        assert!(said_of("a\näö".bytes().chain([0xfe]).collect::<Vec<_>>().as_slice()).starts_with("/t:2:3: "));
        assert!(said_of(b"\xff\xfem\0e\0").contains("is UTF-16"));
        assert!(said_of(&vec![b'a'; 64 * 1024 + 1]).starts_with("/t is longer than 64 KiB"));
        let dir = tempfile::tempdir().unwrap();
        assert!(said(dir.path()).contains("/t: it is a directory; name the file"), "{}", said(dir.path()));
        assert!(said(&dir.path().join("none")).starts_with("cannot read the token from /t: No such file"));
    }
}
