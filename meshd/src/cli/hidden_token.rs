//! A join token on the command line is readable by every user of this machine for as long as the process lives, which
//! waits for a coordinator. So it begins again with `-` in the token's place, and the token on standard input.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use mesh_proto::trust::join_token::JoinToken;

/// The longest token that is handed on, in bytes: a pipe takes as much without a reader.
const MOST: usize = 32 * 1024;

/// Begins this process again without the token in its arguments, after a warning. Returns if that is not possible, which
/// the warning says, or not necessary: what is no token ends the command at once.
pub(super) fn hide(token: &str) {
    if token.len() > MOST || token.parse::<JoinToken>().is_err() {
        return;
    }
    warn(
        "the token was visible to every user of this machine (ps), and is in the history of the shell and the log of sudo; give it with --token-file FILE, or on standard input with `-`",
    );
    let error = begin_again(token).unwrap_or_else(|error| error);
    warn(&format!("the token stays visible until this command ends: {error}"));
}

/// Returns why the kernel does not begin it again.
fn begin_again(token: &str) -> io::Result<io::Error> {
    let program = std::env::current_exe()?;
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(token.as_bytes())?;
    drop(writer);
    let mut words = std::env::args_os();
    let mut command = Command::new(program);
    command.arg0(words.next().unwrap_or_else(|| "meshd".into()));
    command.args(words.map(|word| if word == token { "-".into() } else { word }));
    Ok(command.stdin(reader).exec())
}

fn warn(sentence: &str) {
    // Whoever does not read it gets the same join.
    let _ = writeln!(io::stderr(), "meshd: warning: {sentence}");
}
