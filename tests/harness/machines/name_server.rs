//! The DNS server of the machines: it knows one name.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::netns::Namespace;

/// How often it looks whether it is to end.
const TICK: Duration = Duration::from_millis(100);

/// It answers until it is dropped.
pub(crate) struct NameServer {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// Begins to answer at an address of the namespace; `known` are a name and its address.
    ///
    /// # Errors
    /// If the port is taken.
    pub(crate) fn start(namespace: &Namespace, at: Ipv4Addr, known: (&str, Ipv4Addr)) -> io::Result<Self> {
        let socket = namespace.run(move || UdpSocket::bind((at, 53)))?;
        socket.set_read_timeout(Some(TICK))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, name, address) = (Arc::clone(&is_over), labels(known.0), known.1);
        let thread = std::thread::spawn(move || {
            let mut question = [0; 512];
            while !over.load(Ordering::Relaxed) {
                let Ok((length, who)) = socket.recv_from(&mut question) else { continue };
                if let Some(answer) = answer(&question[..length], &name, address) {
                    let _ = socket.send_to(&answer, who);
                }
            }
        });
        Ok(Self { is_over, thread: Some(thread) })
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A name as it stands in a question.
fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap_or(0));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// The answer to a question: the address, nothing of another type, or that there is no such name.
fn answer(question: &[u8], name: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    let body = question.get(12..)?;
    let end = body.iter().position(|&byte| byte == 0)? + 1;
    let (asked, kind) = (body.get(..end)?.to_ascii_lowercase(), body.get(end..end + 2)?);
    let is_known = asked == name;
    let has_address = is_known && kind == [0, 1];
    let mut answer = question.get(..2)?.to_vec();
    answer.extend_from_slice(&[0x81, if is_known { 0x80 } else { 0x83 }, 0, 1, 0, u8::from(has_address), 0, 0, 0, 0]);
    answer.extend_from_slice(body.get(..end + 4)?);
    if has_address {
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend_from_slice(&address.octets());
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_has_an_address_and_the_rest_are_not_there() {
        let question = |name: &str, kind: u8| {
            [&[7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], &labels(name)[..], &[0, kind, 0, 1]].concat()
        };
        let ask = |name: &str, kind| answer(&question(name, kind), &labels("a.example"), Ipv4Addr::new(10, 60, 0, 9));
        assert!(ask("A.example", 1).is_some_and(|a| a[3] == 0x80 && a.ends_with(&[0, 4, 10, 60, 0, 9])));
        assert!(ask("a.example", 28).is_some_and(|a| a[3] == 0x80 && a[7] == 0));
        assert!(ask("b.example", 1).is_some_and(|a| a[3] == 0x83 && a[7] == 0));
        assert!(answer(&[0; 12], &labels("a.example"), Ipv4Addr::LOCALHOST).is_none());
    }
}
