//! The outer sockets of a lane: one for IPv4 and one for IPv6, read and written in batches.
//!
//! Each datagram comes with the own address that it was sent to (IP_PKTINFO), and leaves from the address
//! that its endpoint speaks to, so that a host with several addresses is answered from the right one.
//! Fragmentation is left to the network (no DF), as the kernel's WireGuard does: a path MTU learned from
//! forged ICMP must not stop the tunnel.
#![expect(unsafe_code, reason = "recvmmsg, sendmmsg and some socket options have no safe wrapper")]

use std::cell::Cell;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::cmsg::{Control, Name};
use crate::datagrams::{Endpoint, Outbox, Run};

/// Messages per system call, each a run of datagrams.
pub const BATCH: usize = 32;
/// Bytes that one message can hold.
const SLOT: usize = 65_536;
/// Socket buffers asked for, in bytes: some 5 ms at 10 Gbit/s.
const BUFFER: usize = 7 << 20;
/// How long a full send buffer may stop a lane before datagrams are dropped.
const PATIENCE_NANOS: i64 = 5_000_000;

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// Another program listens there.
    #[error("UDP port {port} is in use: stop the program that holds it (`ss -lunp`), or choose another `port`")]
    InUse {
        /// The port.
        port: u16,
    },
    /// The mark needs a privilege.
    #[error("cannot mark datagrams of UDP port {port}: {source}; run as root, or with CAP_NET_ADMIN")]
    Mark {
        /// The port.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot open UDP port {port}: {source}")]
    Open {
        /// The port.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The sockets of one lane.
#[derive(Debug)]
pub struct Sockets {
    v4: Socket,
    v6: Option<Socket>,
}

/// What became of a batch that was to be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Datagrams that the kernel took.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Data messages that it did not take.
    pub lost: u64,
}

impl Sockets {
    /// Opens a lane's port for IPv4 and, where the host has it, IPv6. A mark of 0 sets none.
    ///
    /// # Errors
    /// Says which port cannot be had, and what to do.
    pub fn open(port: u16, mark: u32) -> Result<Self, UdpError> {
        let v4 = Socket::open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), mark)?;
        let v6 = match Socket::open(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), mark) {
            Ok(socket) => Some(socket),
            Err(UdpError::Open { source, .. }) if without_ipv6(&source) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { v4, v6 })
    }

    /// Returns the sockets that there are.
    pub fn each(&self) -> impl Iterator<Item = &Socket> {
        std::iter::once(&self.v4).chain(&self.v6)
    }

    /// Sends everything that waits and empties the outbox.
    pub fn send(&self, outbox: &mut Outbox) -> Sent {
        let mut sent = Sent::default();
        let runs = outbox.runs();
        let same_family = |a: &Run, b: &Run| a.endpoint.remote.is_ipv4() == b.endpoint.remote.is_ipv4();
        for runs in runs.chunk_by(same_family) {
            let socket = if runs[0].endpoint.remote.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() };
            match socket {
                Some(socket) => runs.chunks(BATCH).for_each(|runs| socket.send(outbox, runs, &mut sent)),
                None => runs.iter().for_each(|run| sent.lose(outbox, run)),
            }
        }
        outbox.clear();
        outbox.set_joins(self.each().all(|socket| socket.segments.get()));
        sent
    }
}

impl Sent {
    fn take(&mut self, run: &Run) {
        self.datagrams += run.count() as u64;
        self.bytes += run.len as u64;
    }

    /// Counts what is lost; handshakes are none of it, for they are tried at addresses that may not exist.
    fn lose(&mut self, outbox: &Outbox, run: &Run) {
        if outbox.bytes(run).first() == Some(&4) {
            self.lost += run.count() as u64;
        }
    }
}

fn without_ipv6(error: &io::Error) -> bool {
    let absent = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL, Errno::PROTONOSUPPORT];
    Errno::from_io_error(error).is_some_and(|errno| absent.contains(&errno))
}

/// One socket of a lane, non-blocking.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// Whether runs may be sent as one; false once the kernel said that the device cannot.
    segments: Cell<bool>,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Socket {
    fn open(address: SocketAddr, mark: u32) -> Result<Self, UdpError> {
        let port = address.port();
        let fail = |source: io::Error| match Errno::from_io_error(&source) {
            Some(Errno::ADDRINUSE) => UdpError::InUse { port },
            _ => UdpError::Open { port, source },
        };
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = rustix::net::socket_with(family, SocketType::DGRAM, flags, None).map_err(|e| fail(e.into()))?;
        if mark != 0 {
            set(&fd, libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed())
                .map_err(|source| UdpError::Mark { port, source })?;
        }
        configure(&fd, address.is_ipv4()).map_err(fail)?;
        rustix::net::bind(&fd, &address).map_err(|e| fail(e.into()))?;
        Ok(Self { fd, segments: Cell::new(true) })
    }

    /// Receives up to `BATCH` messages in place of what `inbox` held. Says how many.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn receive(&self, inbox: &mut Inbox) -> io::Result<usize> {
        inbox.runs.clear();
        inbox.cut = 0;
        let mut names = [Name::EMPTY; BATCH];
        let mut controls = [Control::EMPTY; BATCH];
        // SAFETY: iovec and mmsghdr are plain data, for which all zeros is a valid value.
        let (mut parts, mut messages): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) = unsafe { mem::zeroed() };
        let slots = inbox.arena.chunks_exact_mut(SLOT);
        for (i, slot) in slots.take(BATCH).enumerate() {
            parts[i] = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            let header = &mut messages[i].msg_hdr;
            header.msg_name = names[i].0.as_mut_ptr().cast();
            header.msg_namelen = names[i].0.len() as libc::socklen_t;
            header.msg_iov = &raw mut parts[i];
            header.msg_iovlen = 1;
            header.msg_control = controls[i].0.as_mut_ptr().cast();
            header.msg_controllen = controls[i].0.len() as _;
        }
        // SAFETY: every message points to a name, a control buffer, one iovec and through it to a slot of the
        // arena, all alive and of the stated lengths, and none shared between messages.
        let count = unsafe {
            libc::recvmmsg(
                self.fd.as_raw_fd(),
                messages.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            let nothing = matches!(Errno::from_io_error(&error), Some(Errno::AGAIN | Errno::INTR));
            return if nothing { Ok(0) } else { Err(error) };
        }
        let count = count.unsigned_abs() as usize;
        for (i, message) in messages.iter().enumerate().take(count) {
            inbox.take(i, message.msg_len as usize, message.msg_hdr.msg_flags, &names[i], &controls[i]);
        }
        Ok(count)
    }

    fn send(&self, outbox: &Outbox, runs: &[Run], sent: &mut Sent) {
        let mut rest = runs;
        let mut waited = false;
        while let [first, others @ ..] = rest {
            match self.send_some(outbox, rest) {
                Ok(count) => {
                    rest[..count].iter().for_each(|run| sent.take(run));
                    rest = &rest[count..];
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOBUFS) if !waited => {
                    waited = true;
                    self.wait_writable();
                }
                Err(Errno::AGAIN | Errno::NOBUFS) => {
                    rest.iter().for_each(|run| sent.lose(outbox, run));
                    return;
                }
                Err(error) => {
                    self.send_again(outbox, first, error, sent);
                    rest = others;
                }
            }
        }
    }

    /// Sends as many runs as the kernel takes in one call; an error is about the first.
    fn send_some(&self, outbox: &Outbox, runs: &[Run]) -> Result<usize, Errno> {
        let runs = &runs[..runs.len().min(BATCH)];
        let mut names = [Name::EMPTY; BATCH];
        let mut controls = [Control::EMPTY; BATCH];
        // SAFETY: iovec and mmsghdr are plain data, for which all zeros is a valid value.
        let (mut parts, mut messages): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) = unsafe { mem::zeroed() };
        let mut filled = 0;
        for (i, run) in runs.iter().enumerate() {
            let segment = (run.count() > 1).then_some(run.segment);
            if segment.is_some() && !self.segments.get() {
                if i == 0 {
                    return Err(Errno::IO);
                }
                break;
            }
            let bytes = outbox.bytes(run);
            parts[i] = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            let header = &mut messages[i].msg_hdr;
            header.msg_namelen = names[i].write(run.endpoint.remote) as libc::socklen_t;
            header.msg_name = names[i].0.as_mut_ptr().cast();
            header.msg_iov = &raw mut parts[i];
            header.msg_iovlen = 1;
            let control = controls[i].write(run.endpoint.local, segment);
            if control > 0 {
                header.msg_control = controls[i].0.as_mut_ptr().cast();
                header.msg_controllen = control as _;
            }
            filled = i + 1;
        }
        // SAFETY: the first `filled` messages point to a name, one iovec and perhaps a control buffer, all alive
        // and of the stated lengths; the kernel only reads what the iovecs point to.
        let count = unsafe {
            libc::sendmmsg(self.fd.as_raw_fd(), messages.as_mut_ptr(), filled as libc::c_uint, libc::MSG_DONTWAIT as _)
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
        }
        Ok(count.unsigned_abs() as usize)
    }

    /// Sends a run that the kernel refused in a plainer way: datagram by datagram, and from any own address.
    fn send_again(&self, outbox: &Outbox, run: &Run, error: Errno, sent: &mut Sent) {
        if error == Errno::IO {
            // The device, or an IPsec policy on the route, cannot segment: every further run would fail alike.
            self.segments.set(false);
        }
        let mut start = run.start;
        let end = run.start + run.len;
        while start < end {
            let len = run.segment.min(end - start);
            let one = Run { start, len, segment: len, ..*run };
            let anywhere = Run { endpoint: run.endpoint.remote.into(), ..one };
            let taken = self.send_some(outbox, &[one]).or_else(|_| self.send_some(outbox, &[anywhere]));
            match taken {
                Ok(_) => sent.take(&one),
                Err(_) => sent.lose(outbox, &one),
            }
            start += len;
        }
    }

    fn wait_writable(&self) {
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        // Whether it became writable shows at the next try.
        let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: PATIENCE_NANOS }));
    }
}

/// Sets what a tunnel socket needs; what an old kernel or a missing privilege refuses but the tunnel can do
/// without is left as it is.
fn configure(fd: &OwnedFd, ipv4: bool) -> io::Result<()> {
    if sockopt::set_socket_recv_buffer_size_force(fd, BUFFER).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(fd, BUFFER);
    }
    if sockopt::set_socket_send_buffer_size_force(fd, BUFFER).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(fd, BUFFER);
    }
    let _ = set(fd, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1);
    let _ = set(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
    if ipv4 {
        set(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        set(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)
    } else {
        sockopt::set_ipv6_v6only(fd, true)?;
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)
    }
}

fn set(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the option's value is one int, which lives until the call returns.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Datagrams received with one call.
#[derive(Debug)]
pub struct Inbox {
    arena: Box<[u8]>,
    runs: Vec<Run>,
    cut: u64,
    overflows: u32,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { arena: vec![0; BATCH * SLOT].into(), runs: Vec::with_capacity(BATCH), cut: 0, overflows: 0 }
    }
}

impl Inbox {
    /// Returns every datagram with where it came from.
    pub fn datagrams(&self) -> impl Iterator<Item = (Endpoint, &[u8])> {
        self.runs.iter().flat_map(|run| {
            let bytes = &self.arena[run.start..run.start + run.len];
            // An empty datagram is one, too.
            let empty = bytes.is_empty().then_some(bytes);
            bytes.chunks(run.segment.max(1)).chain(empty).map(|datagram| (run.endpoint, datagram))
        })
    }

    /// Returns how many datagrams of the last batch were longer than any that we take, or from nowhere.
    pub fn cut(&self) -> u64 {
        self.cut
    }

    /// Returns how many datagrams the kernel dropped because our buffer was full, as last heard.
    pub fn overflows(&self) -> u32 {
        self.overflows
    }

    fn take(&mut self, slot: usize, len: usize, flags: libc::c_int, name: &Name, control: &Control) {
        let told = control.read();
        self.overflows = told.overflows.unwrap_or(self.overflows);
        let Some(remote) = name.read().filter(|_| flags & libc::MSG_TRUNC == 0) else {
            self.cut += 1;
            return;
        };
        let len = len.min(SLOT);
        let segment = told.segment.filter(|&segment| segment > 0).unwrap_or(len).min(len);
        let endpoint = Endpoint { remote, local: told.local };
        self.runs.push(Run { endpoint, start: slot * SLOT, len, segment });
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::net::IpAddr;

    use super::*;

    /// Sockets on a free port; the port may be taken by another program in between, so it tries several.
    fn sockets() -> (Sockets, u16) {
        let free = || std::net::UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).map(|a| a.port());
        let open = |_| free().ok().and_then(|port| Some((Sockets::open(port, 0).ok()?, port)));
        (0..10).find_map(open).unwrap()
    }

    fn receive(socket: &Socket) -> Vec<(Endpoint, Vec<u8>)> {
        let mut inbox = Inbox::default();
        let mut got = Vec::new();
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        let mut fds = [PollFd::new(socket, PollFlags::IN)];
        poll(&mut fds, Some(&second)).unwrap();
        while socket.receive(&mut inbox).unwrap() > 0 {
            got.extend(inbox.datagrams().map(|(from, datagram)| (from, datagram.to_vec())));
        }
        got
    }

    #[test]
    fn batches_arrive_whole_and_in_order_and_so_without_segmentation() {
        for segments in [true, false] {
            let ((a, from), (b, to)) = (sockets(), sockets());
            a.v4.segments.set(segments);
            let mut outbox = Outbox::new(1 << 20);
            let target = Endpoint::from(SocketAddr::from(([127, 0, 0, 1], to)));
            let sizes = [1400; 70].into_iter().chain([900, 33, 1, 65_000, 1400]);
            let expected: Vec<Vec<u8>> = sizes.enumerate().map(|(i, size)| vec![i as u8; size]).collect();
            expected.iter().for_each(|datagram| assert!(outbox.push(datagram, target)));

            let sent = a.send(&mut outbox);

            let bytes = expected.iter().map(|d| d.len() as u64).sum();
            assert_eq!(sent, Sent { datagrams: 75, bytes, lost: 0 });
            let got = receive(&b.v4);
            assert!(got.iter().all(|(endpoint, _)| endpoint.remote.port() == from));
            assert!(got.into_iter().map(|(_, datagram)| datagram).eq(expected), "segments: {segments}");
        }
    }

    #[test]
    fn an_answer_leaves_from_the_address_that_was_addressed() {
        let ((a, from), (b, to)) = (sockets(), sockets());
        let mut outbox = Outbox::new(1 << 17);
        for (host, own) in [("127.0.0.7", "127.0.0.1"), ("::1", "::1")] {
            let (host, own): (IpAddr, IpAddr) = (host.parse().unwrap(), own.parse().unwrap());
            let (Some(asker), Some(answerer)) = (a.of(host), b.of(host)) else { continue };
            outbox.push(b"question", SocketAddr::new(host, to).into());
            a.send(&mut outbox);
            let (endpoint, question) = receive(answerer).remove(0);
            assert_eq!(
                (endpoint.local, endpoint.remote, &question[..]),
                (Some(host), SocketAddr::new(own, from), &b"question"[..])
            );

            outbox.push(b"answer", endpoint);
            b.send(&mut outbox);
            let (endpoint, answer) = receive(asker).remove(0);
            assert_eq!((endpoint.remote, &answer[..]), (SocketAddr::new(host, to), &b"answer"[..]));
        }
    }

    #[test]
    fn an_own_address_that_is_gone_does_not_stop_datagrams() {
        let ((a, _), (b, to)) = (sockets(), sockets());
        let mut outbox = Outbox::new(1 << 17);
        let remote = SocketAddr::from(([127, 0, 0, 1], to));
        outbox.push(b"hello", Endpoint { remote, local: Some([192, 0, 2, 1].into()) });
        assert_eq!(a.send(&mut outbox).datagrams, 1);
        assert_eq!(receive(&b.v4).remove(0).1, b"hello");
    }

    #[test]
    fn lost_data_is_counted_and_lost_handshakes_are_not() {
        let (a, _) = sockets();
        let mut outbox = Outbox::new(1 << 17);
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        outbox.push(&[4, 0, 0, 0], nowhere.into());
        outbox.push(&[1, 0, 0, 0, 0], nowhere.into());
        assert_eq!(a.send(&mut outbox), Sent { datagrams: 0, bytes: 0, lost: 1 });
    }

    #[test]
    fn an_empty_datagram_is_one() {
        let ((_, _), (b, to)) = (sockets(), sockets());
        let plain = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        plain.send_to(&[], ("127.0.0.1", to)).unwrap();
        assert_eq!(receive(&b.v4).len(), 1);
    }

    #[test]
    fn a_taken_port_is_said_to_be_taken() {
        let (_holder, port) = sockets();
        let error = Sockets::open(port, 0).unwrap_err();
        assert!(matches!(error, UdpError::InUse { port: p } if p == port), "{error}");
    }

    impl Sockets {
        fn of(&self, address: IpAddr) -> Option<&Socket> {
            if address.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() }
        }
    }
}
