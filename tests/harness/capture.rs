//! Every frame on the underlay, seen from the router namespace through which all of it passes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce, ReceiveTimeout, RxqOvfl};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt,
    socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::classify::{Class, Classifier, Known};
use crate::netns::Namespace;

/// The kernel's queue for frames that we have not looked at yet.
const QUEUE_BYTES: usize = 64 << 20;
/// The largest frame: a super-packet of 64 KiB and its headers.
const MAX_FRAME: usize = 66_000;
/// Most leaks that are kept with their bytes.
const MAX_KEPT: usize = 32;
/// Most bytes of a leak that are kept.
const KEPT_BYTES: usize = 512;

/// What was seen so far.
#[derive(Debug, Clone, Default)]
pub struct Captured {
    /// Frames by class.
    pub frames: BTreeMap<Class, u64>,
    /// The first leaks, with the name of the link and their bytes.
    pub leaks: Vec<(u32, Vec<u8>)>,
    /// Frames that the kernel had to throw away before we looked at them.
    pub lost: u32,
}

impl Captured {
    /// Returns how many frames were seen.
    pub fn total(&self) -> u64 {
        self.frames.values().sum()
    }

    /// Returns how many frames of a class were seen.
    pub fn count(&self, class: Class) -> u64 {
        self.frames.get(&class).copied().unwrap_or(0)
    }
}

/// A running capture; it ends with the value.
pub struct Capture {
    seen: Arc<Mutex<Captured>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Captures every frame that comes or goes on any link of a namespace.
    ///
    /// # Errors
    /// If a packet socket cannot be opened.
    pub fn start(namespace: &Namespace, known: Known) -> nix::Result<Self> {
        let socket = namespace.run(open)?;
        let (seen, stop) = (Arc::default(), Arc::default());
        let (sink, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || watch(&socket, Classifier::new(known), &sink, &stopped))
            .map_err(|_| nix::Error::EAGAIN)?;
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    /// Returns what was seen so far.
    pub fn seen(&self) -> Captured {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Opens a packet socket on all links of the calling thread's namespace.
///
/// # Errors
/// Mostly for lack of privilege.
pub fn open() -> nix::Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    // Beyond the system's limit only with privilege over the whole machine, which a user namespace lacks.
    if setsockopt(&socket, RcvBufForce, &QUEUE_BYTES).is_err() {
        setsockopt(&socket, RcvBuf, &QUEUE_BYTES)?;
    }
    setsockopt(&socket, RxqOvfl, &1)?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(50))?;
    Ok(socket)
}

fn watch(socket: &OwnedFd, mut classifier: Classifier, sink: &Mutex<Captured>, stop: &AtomicBool) {
    let mut buffer = vec![0; MAX_FRAME];
    while !stop.load(Ordering::Relaxed) {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let mut control = nix::cmsg_space!(u32);
        let flags = MsgFlags::empty();
        let message = recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags);
        let Ok(message) = message else {
            continue;
        };
        let lost = message.cmsgs().into_iter().flatten().find_map(|c| {
            let ControlMessageOwned::RxqOvfl(lost) = c else { return None };
            Some(lost)
        });
        let link = message.address.map_or(0, |a| a.ifindex());
        let length = message.bytes;
        let class = classifier.classify(&buffer[..length]);
        let mut seen = sink.lock().unwrap_or_else(PoisonError::into_inner);
        *seen.frames.entry(class).or_default() += 1;
        seen.lost = lost.unwrap_or(seen.lost);
        if class == Class::Leak && seen.leaks.len() < MAX_KEPT {
            let kept = buffer[..length.min(KEPT_BYTES)].to_vec();
            seen.leaks.push((u32::try_from(link).unwrap_or(0), kept));
        }
    }
}

/// Writes bytes as people read them: offsets, hexadecimal, text.
pub fn hex_dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (row, chunk) in bytes.chunks(16).enumerate() {
        let hex: Vec<String> = chunk.iter().map(|b| format!("{b:02x}")).collect();
        let printable = |&b: &u8| if b.is_ascii_graphic() || b == b' ' { b as char } else { '.' };
        let plain: String = chunk.iter().map(printable).collect();
        let _ = writeln!(text, "  {:04x}  {:<47}  {plain}", row * 16, hex.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::privilege::privileged;
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    #[test]
    fn a_packet_in_clear_is_caught_with_its_bytes() {
        if !privileged("packet capture") {
            return;
        }
        let prefix = format!("hc{}", std::process::id());
        let a = Namespace::new(&prefix, "a", None).unwrap();
        let b = Namespace::new(&prefix, "b", None).unwrap();
        a.veth("eth0", &b, "eth0").unwrap();
        a.address("eth0", "10.99.0.1/24".parse().unwrap()).unwrap();
        b.address("eth0", "10.99.0.2/24".parse().unwrap()).unwrap();
        let capture = Capture::start(&b, Known::default()).unwrap();

        a.run(|| {
            let socket = UdpSocket::bind("10.99.0.1:0").unwrap();
            socket.send_to(b"in clear", "10.99.0.2:9").unwrap();
        });

        let found = || {
            let seen = capture.seen();
            seen.leaks.iter().any(|(_, bytes)| hex_dump(bytes).contains("in clear"))
        };
        let end = Instant::now() + Duration::from_secs(5);
        while !found() && Instant::now() < end {
            std::thread::yield_now();
        }
        assert!(found());
        assert!(capture.seen().count(Class::Neighbour) > 0);
    }
}
