//! The log: whoever speaks hands his line to a thread that writes to standard error, and waits for nothing.
//!
//! ```text
//!   who speaks ──▶ queue of 4096 lines, 1 MiB ──▶ thread `log` ──▶ standard error
//!                    └ full: lost, counted           └ error: lost, counted
//! ```
//! A line is what one event says, even where that has line ends in it. Lost lines are told of in the status, by a metric,
//! and in the log itself, in their place, as soon as it can be written again.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};

use crate::clock::unix;
use crate::output::write_all;

/// Most lines that wait to be written; one more is being written.
const MAX_LINES: usize = 4096;
/// Most bytes of them.
const MAX_BYTES: usize = 1 << 20;
/// How long the end of the process, or a panic, waits for lines to be written.
const FAREWELL: Duration = Duration::from_millis(200);
/// How often it is tried to say that lines were lost, while nobody speaks.
const RETRY: Duration = Duration::from_secs(1);
/// How long the operator is told that lines were lost, in seconds.
const SHOWN: u64 = 3600;
/// What systemd says of a standard error that goes to the journal: its device and inode.
const JOURNAL: &str = "JOURNAL_STREAM";

/// The log of this process. Dropping it waits at most 200 ms until all is written.
pub struct ProcessLog(Arc<Queue>);

impl ProcessLog {
    /// Begins to log to standard error: what the environment variable says, else the `usual`. Panics are logged, too.
    ///
    /// # Errors
    /// If the kernel refuses a thread, or this process has a log.
    pub fn start(variable: &str, usual: &str) -> io::Result<Self> {
        let filter = EnvFilter::try_from_env(variable).unwrap_or_else(|_| EnvFilter::new(usual));
        let to_journal = std::env::var(JOURNAL).is_ok_and(|stream| leads_to(io::stderr(), &stream));
        let queue = Arc::new(Queue::new(to_journal));
        let written = Arc::clone(&queue);
        std::thread::Builder::new().name("log".into()).spawn(move || written.write_to(io::stderr()))?;
        let format = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_target(false)
            .with_ansi(!to_journal && io::stderr().is_terminal())
            .log_internal_errors(false)
            .with_writer(Lines(Arc::clone(&queue)));
        let begun = if to_journal { format.without_time().try_init() } else { format.try_init() };
        begun.map_err(io::Error::other)?;
        let panics = Arc::clone(&queue);
        std::panic::set_hook(Box::new(move |panic| panics.panicked(panic)));
        Ok(Self(queue))
    }

    /// Logs why the process ends, without a time.
    pub fn last_words(&self, text: &str) {
        self.0.say(Level::ERROR, format!("{text}\n").as_bytes());
    }

    /// Returns the count of lines that were lost.
    pub fn lost(&self) -> LostLines {
        self.0.lost.clone()
    }
}

impl Drop for ProcessLog {
    fn drop(&mut self) {
        self.0.flush();
    }
}

/// How many lines of the log were lost; clones count together.
#[derive(Debug, Clone, Default)]
pub struct LostLines(Arc<Lost>);

#[derive(Debug, Default)]
struct Lost {
    count: AtomicU64,
    /// When the last was, in seconds since 1970.
    last: AtomicU64,
}

impl LostLines {
    /// Returns how many, since the process began.
    pub fn count(&self) -> u64 {
        self.0.count.load(Ordering::Relaxed)
    }

    /// Returns what the operator is told: for an hour after the last one.
    pub fn sentence(&self) -> Option<String> {
        let since = unix().0.saturating_sub(self.0.last.load(Ordering::Relaxed));
        let count = self.count();
        (count > 0 && since < SHOWN).then(|| {
            let lines = if count == 1 { "1 line" } else { &format!("{count} lines") };
            format!(
                "{lines} of the log were lost, for standard error did not take them: look whether its disk is full, or its reader stopped reading"
            )
        })
    }

    fn add(&self) {
        self.0.last.store(unix().0, Ordering::Relaxed);
        self.0.count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Says whether a descriptor is the stream that `JOURNAL_STREAM` names: a child inherits the variable, and not always the
/// stream.
fn leads_to(descriptor: impl AsFd, stream: &str) -> bool {
    rustix::fs::fstat(descriptor).is_ok_and(|stat| format!("{}:{}", stat.st_dev, stat.st_ino) == stream)
}

/// What waits to be written, and who writes it.
struct Queue {
    waiting: Mutex<Waiting>,
    /// A line came, or was lost.
    more: Condvar,
    /// All is written.
    empty: Condvar,
    lost: LostLines,
    to_journal: bool,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Line>,
    bytes: usize,
    /// Lost since the last line that was taken.
    lost: u64,
    is_writing: bool,
}

struct Line {
    text: Vec<u8>,
    /// Lines lost between the one before and this one.
    lost_before: u64,
}

impl Queue {
    fn new(to_journal: bool) -> Self {
        Self {
            waiting: Mutex::default(),
            more: Condvar::new(),
            empty: Condvar::new(),
            lost: LostLines::default(),
            to_journal,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a text that ends with a line end, or counts it as lost.
    fn say(&self, level: Level, text: &[u8]) {
        let text = self.drawn(level, text);
        let mut waiting = self.lock();
        if waiting.lines.len() < MAX_LINES && waiting.bytes + text.len() <= MAX_BYTES {
            waiting.bytes += text.len();
            let lost_before = std::mem::take(&mut waiting.lost);
            waiting.lines.push_back(Line { text, lost_before });
        } else {
            waiting.lost += 1;
            self.lost.add();
        }
        drop(waiting);
        self.more.notify_one();
    }

    /// Writes a text as the reader of standard error wants it: for the journal, each line with its priority.
    fn drawn(&self, level: Level, text: &[u8]) -> Vec<u8> {
        if !self.to_journal {
            return text.to_vec();
        }
        let mut drawn = Vec::with_capacity(text.len() + 16);
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            drawn.extend_from_slice(priority(level));
            drawn.extend_from_slice(line);
        }
        drawn
    }

    /// Writes what is said, for as long as the process lives.
    fn write_to(&self, to: impl AsFd) {
        let mut pen = Pen { to, is_torn: false, refused: None };
        let mut untold = 0;
        loop {
            // A pipe without a reader never gets another.
            let patience = (untold > 0 && pen.refused != Some(Errno::PIPE)).then_some(RETRY);
            let (line, lost) = self.next(patience);
            untold += lost;
            if untold > 0 && pen.write(&self.loss(untold)) {
                untold = 0;
            }
            if let Some(line) = line
                && (untold > 0 || !pen.write(&line))
            {
                untold += 1;
                self.lost.add();
            }
        }
    }

    /// Waits for a line, or to hear that some were lost, for as long as there is patience.
    fn next(&self, patience: Option<Duration>) -> (Option<Vec<u8>>, u64) {
        let mut waiting = self.lock();
        waiting.is_writing = false;
        let mut is_over = false;
        loop {
            let line = waiting.lines.pop_front();
            if line.is_none() && waiting.lost == 0 && !is_over {
                self.empty.notify_all();
                (waiting, is_over) = match patience {
                    None => (self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner), false),
                    Some(patience) => {
                        let woken = self.more.wait_timeout(waiting, patience);
                        let (waiting, timeout) = woken.unwrap_or_else(PoisonError::into_inner);
                        (waiting, timeout.timed_out())
                    }
                };
                continue;
            }
            waiting.is_writing = true;
            return match line {
                Some(line) => {
                    waiting.bytes -= line.text.len();
                    (Some(line.text), line.lost_before)
                }
                None => (None, std::mem::take(&mut waiting.lost)),
            };
        }
    }

    /// Waits until all is written, for at most 200 ms.
    fn flush(&self) {
        let is_busy = |waiting: &mut Waiting| waiting.is_writing || !waiting.lines.is_empty() || waiting.lost > 0;
        let flushed = self.empty.wait_timeout_while(self.lock(), FAREWELL, is_busy);
        drop(flushed.unwrap_or_else(PoisonError::into_inner));
    }

    /// Says that lines were lost, where they are missing.
    fn loss(&self, count: u64) -> Vec<u8> {
        let mut text = String::new();
        if !self.to_journal {
            // A time that cannot be written is left out.
            let _ = SystemTime.format_time(&mut Writer::new(&mut text));
            text.push(' ');
        }
        text += &format!(" WARN lines of the log were lost here, for standard error did not take them count={count}\n");
        self.drawn(Level::WARN, text.as_bytes())
    }

    /// Logs a panic. The process may end when this returns.
    fn panicked(&self, panic: &PanicHookInfo<'_>) {
        let thread = std::thread::current();
        let mut text = format!("thread '{}' {panic}\n", thread.name().unwrap_or("<unnamed>"));
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            text += &format!("stack backtrace:\n{trace}\n");
        }
        self.say(Level::ERROR, text.as_bytes());
        self.flush();
    }
}

/// The priority of syslog, as sd-daemon(3) has it.
fn priority(level: Level) -> &'static [u8] {
    match level {
        Level::ERROR => b"<3>",
        Level::WARN => b"<4>",
        Level::INFO => b"<6>",
        Level::DEBUG | Level::TRACE => b"<7>",
    }
}

/// Writes whole lines.
struct Pen<To> {
    to: To,
    /// Whether a line was written in part.
    is_torn: bool,
    /// Why the last was not written.
    refused: Option<Errno>,
}

impl<To: AsFd> Pen<To> {
    /// Writes a line; says whether it is written whole.
    fn write(&mut self, line: &[u8]) -> bool {
        let ended = if self.is_torn { [b"\n", line].concat() } else { line.to_vec() };
        let mut rest = &*ended;
        self.refused = write_all(&self.to, &mut rest).err();
        if rest.len() < ended.len() {
            self.is_torn = !rest.is_empty();
        }
        self.refused.is_none()
    }
}

/// What tracing writes to: it hands over each event by one call.
struct Lines(Arc<Queue>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter { queue: &self.0, level: Level::INFO }
    }

    fn make_writer_for(&'a self, of: &Metadata<'_>) -> Self::Writer {
        LineWriter { queue: &self.0, level: *of.level() }
    }
}

struct LineWriter<'a> {
    queue: &'a Queue,
    level: Level,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.queue.say(self.level, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs::File;
    use std::io::{BufRead as _, BufReader, Read as _};
    use std::os::fd::OwnedFd;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    use super::*;

    fn written_to(to: impl Into<OwnedFd>) -> Arc<Queue> {
        let queue = Arc::new(Queue::new(false));
        let (written, to) = (Arc::clone(&queue), to.into());
        std::thread::spawn(move || written.write_to(to));
        queue
    }

    #[test]
    fn the_queue_holds_4096_lines_and_a_mebibyte() {
        let lines = Queue::new(false);
        (0..MAX_LINES + 3).for_each(|_| lines.say(Level::INFO, b"x\n"));
        assert_eq!((lines.lock().lines.len(), lines.lost.count()), (4096, 3));

        let bytes = Queue::new(false);
        let line = vec![b'x'; MAX_BYTES / 4];
        (0..6).for_each(|_| bytes.say(Level::INFO, &line));
        assert_eq!((bytes.lock().bytes, bytes.lost.count()), (1 << 20, 2));
        // What is longer than the whole queue is lost, and shorter ones after it are not.
        let empty = Queue::new(false);
        empty.say(Level::INFO, &vec![b'x'; MAX_BYTES + 1]);
        empty.say(Level::INFO, b"short\n");
        let waiting = empty.lock();
        assert_eq!((waiting.lines.len(), waiting.lines[0].lost_before, empty.lost.count()), (1, 1, 1));
    }

    #[test]
    fn who_speaks_never_waits_and_the_loss_is_told_in_its_place() {
        let (reader, writer) = io::pipe().unwrap();
        let queue = written_to(writer);
        let began = Instant::now();
        let spoken = 3 * MAX_LINES;
        (0..spoken).for_each(|i| queue.say(Level::INFO, format!("{i:064}\n").as_bytes()));
        queue.flush();
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        let lost = queue.lost.count();
        assert!(lost > 0 && queue.lost.sentence().unwrap().starts_with(&format!("{lost} lines")));

        let mut lines = BufReader::new(reader).lines();
        let (mut next, mut told) = (0, 0);
        while next < spoken {
            let line = lines.next().unwrap().unwrap();
            if let Some((said, count)) = line.split_once(" count=") {
                assert!(said.starts_with("20") && said.contains("  WARN lines of the log were lost here"), "{line}");
                let count: usize = count.parse().unwrap();
                (next, told) = (next + count, told + count);
            } else {
                assert_eq!(line, format!("{next:064}"));
                next += 1;
            }
        }
        assert_eq!((next, u64::try_from(told).unwrap()), (spoken, lost));
        queue.say(Level::INFO, b"again\n");
        assert_eq!(lines.next().unwrap().unwrap(), "again");
        assert_eq!(queue.lost.count(), lost);
    }

    #[test]
    fn a_line_that_cannot_be_written_is_lost() {
        let (reader, gone) = io::pipe().unwrap();
        drop(reader);
        for queue in [written_to(gone), written_to(File::options().write(true).open("/dev/full").unwrap())] {
            (0..3).for_each(|_| queue.say(Level::INFO, b"x\n"));
            let began = Instant::now();
            while queue.lost.count() < 3 {
                assert!(began.elapsed() < Duration::from_secs(5));
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(queue.lost.count(), 3);
        }
    }

    #[test]
    fn the_end_waits_200_ms_for_a_pipe_that_nobody_reads() {
        let (_reader, writer) = io::pipe().unwrap();
        let queue = written_to(writer);
        queue.say(Level::INFO, &vec![b'x'; MAX_BYTES / 2]);
        let began = Instant::now();
        queue.flush();
        let took = began.elapsed();
        assert!(took >= FAREWELL && took < FAREWELL * 10, "{took:?}");
    }

    /// Says to the process that it is the one with a log.
    const LOGS: &str = "MESH_TEST_LOG";

    #[test]
    #[ignore = "part of another test"]
    fn a_process_with_a_log() {
        if std::env::var_os(LOGS).is_none() {
            return;
        }
        let log = ProcessLog::start("MESH_TEST_NOTHING", "info").unwrap();
        let lost = log.lost();
        tracing::warn!("said");
        std::thread::Builder::new().name("odd".into()).spawn(|| panic!("3 is odd")).unwrap().join().unwrap_err();
        log.last_words("the end");
        drop(log);
        std::process::exit(i32::from(lost.count() > 0));
    }

    /// Runs one that panics; returns its exit code, or none if it was killed.
    fn process(stderr: impl Into<Stdio>) -> (Option<i32>, String) {
        let mut process = Command::new(std::env::current_exe().unwrap());
        let words = ["--exact", "log::tests::a_process_with_a_log", "--ignored", "--nocapture"];
        let process =
            process.args(words).env(LOGS, "1").env("RUST_BACKTRACE", "0").stdout(Stdio::null()).stderr(stderr);
        let ended = process.spawn().unwrap().wait_with_output().unwrap();
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    }

    #[test]
    fn panics_and_last_words_are_logged_before_the_end() {
        let (code, said) = process(Stdio::piped());
        assert_eq!(code, Some(0), "{said}");
        let lines: Vec<&str> = said.lines().collect();
        let [said, panicked, why, end] = lines.as_slice() else { panic!("{said}") };
        assert!(said.starts_with("20") && said.ends_with("WARN said"), "{said}");
        assert!(panicked.starts_with("thread 'odd' panicked at host/src/log.rs"), "{panicked}");
        assert_eq!((*why, *end), ("3 is odd", "the end"));
    }

    #[test]
    fn a_panic_ends_nothing_else_where_nothing_can_be_written() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert_eq!(process(full).0, Some(1), "its lines are lost");
        let (reader, gone) = io::pipe().unwrap();
        drop(reader);
        assert_eq!(process(gone).0, Some(1), "its lines are lost");
        let (_reader, stuck) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&stuck, true).unwrap();
        while (&stuck).write(&[b'x'; 512]).is_ok() {}
        rustix::io::ioctl_fionbio(&stuck, false).unwrap();
        let began = Instant::now();
        assert_eq!(process(stuck).0, Some(0), "its lines wait");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }

    #[test]
    fn a_torn_line_is_ended_before_the_next() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut pen = Pen { to: &writer, is_torn: true, refused: None };
        assert!(pen.write(b"whole\n") && pen.write(b"next\n"));
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "\nwhole\nnext\n");
    }

    #[test]
    fn the_journal_gets_a_priority_on_each_line() {
        let queue = Queue::new(true);
        assert_eq!(queue.drawn(Level::ERROR, b"a\n\n  b\n"), b"<3>a\n<3>\n<3>  b\n");
        for (level, begins) in
            [(Level::WARN, "<4>"), (Level::INFO, "<6>"), (Level::DEBUG, "<7>"), (Level::TRACE, "<7>")]
        {
            assert!(queue.drawn(level, b"x\n").starts_with(begins.as_bytes()));
        }
        assert!(queue.loss(7).starts_with(b"<4> WARN "));
    }

    #[test]
    fn only_the_stream_that_is_named_is_the_journal() {
        let (reader, writer) = io::pipe().unwrap();
        let stat = rustix::fs::fstat(&writer).unwrap();
        assert!(leads_to(&writer, &format!("{}:{}", stat.st_dev, stat.st_ino)));
        assert!(!leads_to(&writer, &format!("{}:{}", stat.st_dev, stat.st_ino + 1)));
        assert!(!leads_to(&reader, "") && !leads_to(&reader, "1"));
    }
}
