//! The program's log and its prints: standard error that takes nothing alters nothing else, the journal gets priorities,
//! and what cannot be printed is an error, unless its reader went away.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use mesh_host::identity::Identity;
use mesh_proto::trust::join_token::JoinToken;

use crate::common::{DEADLINE, SERVICES, TestNode, until};
use crate::verbs::{CoordinatorProgram, command, run};

/// A pipe of the usual size, full.
fn full_pipe() -> (io::PipeReader, io::PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[b'x'; 512]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (reader, writer)
}

fn full_disk() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

fn without_reader() -> io::PipeWriter {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    writer
}

/// Does with a program whose log cannot be written what is done with any.
async fn works(stderr: impl Into<Stdio>) -> CoordinatorProgram {
    let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let program = CoordinatorProgram::start_as(&metrics.to_string(), |command| {
        command.env("RUST_LOG", "debug").stderr(stderr);
    });
    let dropped = || program.json(&["status"])["log_lines_dropped"].as_u64().unwrap();
    let began = Instant::now();
    while dropped() == 0 {
        assert!(began.elapsed() < DEADLINE, "nothing is dropped");
        // A line of the log each.
        for _ in 0..500 {
            let mut stream = UnixStream::connect(program.dir.path().join("state/admin.sock")).unwrap();
            let _ = stream.write_all(b"no request\r\n\r\n").and_then(|()| stream.read_to_end(&mut Vec::new()));
        }
    }
    let status = program.json(&["status"]);
    let told = |warnings: &serde_json::Value| warnings.to_string().contains("of the log were lost");
    assert!(told(&status["warnings"]), "{status}");
    assert_eq!(program.run(&["status"]).status.code(), Some(0));
    let mut stream = TcpStream::connect(metrics).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let metric = text.lines().find_map(|line| line.strip_prefix("coordinator_log_lines_dropped_total "));
    assert!(metric.unwrap().parse::<u64>().unwrap() > 0, "{text}");

    let token = program.run(&["token", "create", "--site", "dc", "--name", "n1"]).stdout;
    let token: JoinToken = String::from_utf8(token).unwrap().parse().unwrap();
    let node = TestNode {
        name: "n1".into(),
        identity: Identity::generate().unwrap(),
        address: status["listen"][0].as_str().unwrap().parse().unwrap(),
        pin: token.pins[0],
    };
    node.connect().await.join(&token).await.unwrap();
    let revoked = program.run(&["revoke", "n1"]);
    assert!(revoked.status.success(), "{revoked:?}");
    fs::write(program.dir.path().join("services.toml"), SERVICES.replace("\"cart\"", "\"basket\"")).unwrap();
    until("an edit is in force", async || program.json(&["services"]).to_string().contains("basket")).await;
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_on_a_full_disk_alters_nothing_else() {
    assert!(works(full_disk()).await.terminate() < Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_reader_ended_alters_nothing_else() {
    assert!(works(without_reader()).await.terminate() < Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_alters_nothing_else_and_tells_of_it_when_somebody_does() {
    let (mut reader, writer) = full_pipe();
    let mut program = works(writer).await;
    let read = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).map(|_| text)
    });
    // The queue is taken before the process ends.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(program.terminate() < Duration::from_secs(2));
    let text = read.join().unwrap().unwrap();
    assert!(text.contains(" WARN lines of the log were lost here"), "{}", text.len());
    assert!(text.contains(" INFO stopping\n"));
}

#[test]
fn a_fatal_error_does_not_wait_for_its_reader() {
    let dir = tempfile::tempdir().unwrap();
    let (_reader, writer) = full_pipe();
    let began = Instant::now();
    let ended = command(dir.path()).args(["run", "--config", "none.toml"]).stderr(writer).status().unwrap();
    assert_eq!(ended.code(), Some(1));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

/// Starts a program whose standard error is a file, and says what `JOURNAL_STREAM` is to be; returns what it logs of a
/// start and of a bad edit.
fn logged(stream: impl FnOnce(&File) -> String) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let stream = stream(file.as_file());
    let program = CoordinatorProgram::start_as("127.0.0.1:0", |command| {
        command.env("JOURNAL_STREAM", stream).stderr(file.reopen().unwrap());
    });
    fs::write(program.dir.path().join("services.toml"), SERVICES.replace("port", "prot")).unwrap();
    let began = Instant::now();
    loop {
        let text = fs::read_to_string(file.path()).unwrap();
        if text.contains("did you mean") {
            return text.lines().map(str::to_owned).collect();
        }
        assert!(began.elapsed() < DEADLINE, "{text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_journal_gets_the_priority_of_each_line_and_no_time() {
    let lines = logged(|file| {
        let metadata = file.metadata().unwrap();
        format!("{}:{}", metadata.dev(), metadata.ino())
    });
    for line in &lines {
        let said = line.strip_prefix("<6> INFO").or_else(|| line.strip_prefix("<3>"));
        assert!(said.is_some_and(|said| !said.starts_with("20")), "{line}");
    }
    let told = |begin: &str, word: &str| lines.iter().any(|line| line.starts_with(begin) && line.contains(word));
    assert!(told("<6> INFO ", "the coordinator is ready"), "{lines:?}");
    assert!(told("<3>ERROR ", "services.toml is not taken"), "{lines:?}");
    assert!(told("<3>", "did you mean"), "{lines:?}");
}

#[test]
fn a_stream_that_is_not_the_journal_gets_times_and_no_priorities() {
    let lines = logged(|_| "8:1".into());
    assert!(lines[0].starts_with("20"), "{lines:?}");
    assert!(!lines.iter().any(|line| line.starts_with('<')), "{lines:?}");
}

#[test]
fn what_cannot_be_printed_is_an_error_unless_its_reader_went_away() {
    let program = CoordinatorProgram::start();
    let socket = program.dir.path().join("state/admin.sock");
    let socket = socket.to_str().unwrap();
    let printed = |words: &[&str], stdout: Stdio| -> Output {
        let mut command = command(program.dir.path());
        command.args(["--socket", socket]).args(words).stdout(stdout).stderr(Stdio::piped());
        command.spawn().unwrap().wait_with_output().unwrap()
    };
    for words in [
        &["status"][..],
        &["status", "-o", "json"],
        &["nodes"],
        &["token", "create", "--site", "dc"],
        &["check", "services.toml"],
        &["completion", "bash"],
        &["status", "--help"],
        &["--version"],
    ] {
        let usual = run(program.dir.path(), &[&["--socket", socket], words].concat());
        assert_eq!(usual.status.code(), Some(0), "{words:?}");
        let full = printed(words, full_disk().into());
        let said = String::from_utf8(full.stderr).unwrap();
        assert_eq!(full.status.code(), Some(1), "{words:?} {said}");
        assert!(said.contains("cannot write to standard output: No space left on device"), "{words:?} {said}");
        let quiet = printed(words, without_reader().into());
        assert_eq!((quiet.status.code(), quiet.stderr), (Some(0), usual.stderr), "{words:?}");
    }
}
