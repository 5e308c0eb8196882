//! `kill -9` under load: what was acknowledged is there after every one of 200 kills, and what was not is there
//! whole or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{DEADLINE, SERVICES};
use crate::verbs::{command, run};

/// How often the coordinator is killed.
const KILLS: u64 = 200;
/// Clients that write at the same time.
const CLIENTS: usize = 32;
/// The longest life between two kills, in milliseconds.
const LIFE: u64 = 260;
/// Tokens that a client has at a time; above, it revokes its oldest.
const HELD: usize = 2;

/// A connection to the admin socket.
struct Admin(BufReader<UnixStream>);

impl Admin {
    fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Asks, and returns status and body.
    fn ask(&mut self, method: &str, path: &str, body: &str) -> io::Result<(u16, Value)> {
        let length = body.len();
        let kind = "content-type: application/json";
        let head = format!("{method} {path} HTTP/1.1\r\nhost: admin\r\n{kind}\r\ncontent-length: {length}\r\n\r\n");
        self.0.get_mut().write_all((head + body).as_bytes())?;
        let mut line = String::new();
        let mut next = || -> io::Result<String> {
            line.clear();
            match self.0.read_line(&mut line)? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(line.trim_end().to_ascii_lowercase()),
            }
        };
        let status = next()?.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        let mut length = 0;
        loop {
            let line = next()?;
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().map_err(io::Error::other)?;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok((status, serde_json::from_slice(&body)?))
    }

    fn get(&mut self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path, "").unwrap();
        assert_eq!(status, 200, "{body}");
        body
    }
}

/// What the clients know, outside of the coordinator.
#[derive(Default)]
struct Ledger {
    /// Tokens whose making was acknowledged.
    made: BTreeSet<String>,
    /// Tokens whose end was asked for, and whether that was acknowledged.
    ended: BTreeMap<String, bool>,
}

/// Makes and revokes tokens, those that are left of the last life first, until the coordinator dies.
fn write(socket: &Path, ledger: &Mutex<Ledger>, acked: &AtomicU64, mut mine: Vec<String>) -> io::Result<()> {
    let mut admin = Admin::connect(socket)?;
    let new = json!({ "site": "dc", "name": null, "ttl_s": 900, "serve": [], "uses": 1 }).to_string();
    loop {
        let (status, body) = admin.ask("POST", "/v1/tokens", &new)?;
        assert_eq!(status, 200, "{body}");
        let id = body["id"].as_str().unwrap().to_owned();
        ledger.lock().unwrap().made.insert(id.clone());
        acked.fetch_add(1, Ordering::Relaxed);
        mine.push(id);
        while mine.len() > HELD {
            let oldest = mine.remove(0);
            ledger.lock().unwrap().ended.insert(oldest.clone(), false);
            let (status, body) = admin.ask("DELETE", &format!("/v1/tokens/{oldest}"), "")?;
            assert_eq!(status, 200, "{body}");
            ledger.lock().unwrap().ended.insert(oldest, true);
            acked.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The running coordinator, killed when it goes out of scope.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the coordinator and waits until it answers.
fn start(dir: &Path, config: &str, socket: &Path) -> (Killed, Admin, Duration) {
    let began = Instant::now();
    let child = Killed(command(dir).args(["run", "--config", config]).spawn().unwrap());
    loop {
        let admin = Admin::connect(socket).and_then(|mut admin| Ok((admin.ask("GET", "/v1/status", "")?.0, admin)));
        if let Ok((200, admin)) = admin {
            return (child, admin, began.elapsed());
        }
        assert!(began.elapsed() < DEADLINE, "the coordinator does not answer");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Compares what is stored with the ledger, and with what the log of operations says.
fn check(admin: &mut Admin, ledger: &mut Ledger, replayed: &mut BTreeSet<String>, seen: &mut u64) {
    let tokens = admin.get("/v1/tokens");
    let tokens = tokens["tokens"].as_array().unwrap();
    let there: BTreeSet<String> = tokens.iter().map(|token| token["id"].as_str().unwrap().to_owned()).collect();
    let mut next = Some(*seen + 1);
    while let Some(since) = next {
        let page = admin.get(&format!("/v1/log?since={since}"));
        for entry in page["entries"].as_array().unwrap() {
            assert_eq!(entry["seq"], *seen + 1);
            *seen += 1;
            let token = entry["token"].as_str().map(ToOwned::to_owned);
            match entry["kind"].as_str().unwrap() {
                "token_create" => assert!(replayed.insert(token.unwrap())),
                "token_revoke" => assert!(replayed.remove(&token.unwrap())),
                _ => {}
            }
        }
        next = page["next"].as_u64();
    }
    assert_eq!(*replayed, there, "the log says something else than the tables");
    for id in &ledger.made {
        match ledger.ended.get(id) {
            None => assert!(there.contains(id), "acknowledged token {id} is lost"),
            Some(true) => assert!(!there.contains(id), "revoked token {id} is back"),
            Some(false) => {}
        }
    }
    *ledger = Ledger { made: there, ended: BTreeMap::new() };
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures of the run")]
fn two_hundred_kills_lose_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("coordinator.toml");
    let config = config.to_str().unwrap();
    let line = ["init", "--name", "boutique", "--public", "127.0.0.1:7700", "--listen", "127.0.0.1:0"];
    let init = run(dir.path(), &[&line[..], &["--metrics", "127.0.0.1:0", "--config", config]].concat());
    assert!(init.status.success(), "{init:?}");
    fs::write(dir.path().join("services.toml"), SERVICES).unwrap();
    let socket: PathBuf = dir.path().join("state/admin.sock");

    let mut ledger = Ledger::default();
    let (mut replayed, mut seen) = (BTreeSet::new(), 0);
    let acked = AtomicU64::new(0);
    let (mut alive, mut slowest) = (Duration::ZERO, Duration::ZERO);
    for kill in 0..=KILLS {
        let (mut daemon, mut admin, up) = start(dir.path(), config, &socket);
        slowest = slowest.max(up);
        check(&mut admin, &mut ledger, &mut replayed, &mut seen);
        if kill == KILLS {
            break;
        }
        let mut left = vec![Vec::new(); CLIENTS];
        for (number, id) in ledger.made.iter().enumerate() {
            left[number % CLIENTS].push(id.clone());
        }
        let shared = Mutex::new(std::mem::take(&mut ledger));
        let began = Instant::now();
        thread::scope(|scope| {
            for mine in left {
                scope.spawn(|| write(&socket, &shared, &acked, mine).unwrap_err());
            }
            // A different moment each time.
            thread::sleep(Duration::from_micros(kill * 7_919_777 % (LIFE * 1000)));
            alive += began.elapsed();
            daemon.0.kill().unwrap();
            daemon.0.wait().unwrap();
        });
        ledger = shared.into_inner().unwrap();
    }
    let acked = acked.load(Ordering::Relaxed);
    let rate = acked as f64 / alive.as_secs_f64();
    println!("{KILLS} kills, {acked} acknowledged in {alive:?} ({rate:.0}/s), slowest start {slowest:?}");
    assert!(rate >= 200.0, "only {rate:.0} writes/s were acknowledged");
    assert!(slowest <= Duration::from_secs(2), "up again after {slowest:?} only");
}
