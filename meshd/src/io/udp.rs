//! The outer sockets of a lane: one for IPv4 and one for IPv6, read and written in batches.
//!
//! Each datagram comes with the own address that it was sent to (IP_PKTINFO), and leaves from the address
//! that its endpoint speaks to, so that a host with several addresses is answered from the right one.
//! Fragmentation is left to the network (no DF), as the kernel's WireGuard does: a path MTU learned from
//! forged ICMP must not stop the tunnel. The ECN field of a run stands in its outer headers, and that of a received
//! header is told with the run (RFC 6040); the rest of the type of service is 0.
#![expect(unsafe_code, reason = "recvmmsg, sendmmsg and some socket options have no safe wrapper")]

use std::cell::Cell;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::{io, mem};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::io::cmsg::{ControlMessages, Name};
use crate::io::udp_outbox::{DatagramRun, Endpoint, Outbox};

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
    v4: UdpSocket,
    v6: Option<UdpSocket>,
}

/// What became of what was to be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Datagrams that the kernel took.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages of several datagrams among them.
    pub super_packets: u64,
    /// Datagrams in these.
    pub super_segments: u64,
    /// Messages of several datagrams that it did not take, so that they went singly.
    pub fallbacks: u64,
    /// Data messages that it did not take.
    pub lost: u64,
    /// Whether a full buffer was waited for; once is enough.
    waited: bool,
}

impl Sockets {
    /// Opens a lane's port for IPv4 and, where the host has it, IPv6. A mark of 0 sets none; without `offload` the
    /// kernel neither divides nor joins datagrams.
    ///
    /// # Errors
    /// Says which port cannot be had, and what to do.
    pub fn open(port: u16, mark: u32, offload: bool) -> Result<Self, UdpError> {
        let v4 = UdpSocket::open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), mark, offload)?;
        let v6 = match UdpSocket::open(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), mark, offload) {
            Ok(socket) => Some(socket),
            Err(UdpError::Open { source, .. }) if without_ipv6(&source) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { v4, v6 })
    }

    /// Returns the sockets that there are.
    pub fn each(&self) -> impl Iterator<Item = &UdpSocket> {
        std::iter::once(&self.v4).chain(&self.v6)
    }

    /// Sends everything that waits and empties the outbox. A full buffer holds it up for at most 5 ms; what does not
    /// fit by then is lost.
    pub fn send(&self, outbox: &mut Outbox) -> Sent {
        let mut sent = Sent::default();
        let same_family = |a: &DatagramRun, b: &DatagramRun| a.endpoint.remote.is_ipv4() == b.endpoint.remote.is_ipv4();
        for runs in outbox.runs().chunk_by(same_family) {
            let socket = if runs[0].endpoint.remote.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() };
            match socket {
                Some(socket) => socket.send(outbox, runs, &mut sent),
                None => runs.iter().for_each(|run| sent.lose(outbox, run)),
            }
        }
        outbox.clear();
        self.prepare(outbox);
        sent
    }

    /// Tells an outbox how many datagrams may go together.
    pub fn prepare(&self, outbox: &mut Outbox) {
        outbox.set_most(self.v4.most.get(), self.v6.as_ref().map_or(1, |socket| socket.most.get()));
    }

    /// Says whether several datagrams may go together, over IPv4 or IPv6.
    pub fn segments(&self) -> bool {
        self.each().any(|socket| socket.most.get() > 1)
    }

    /// Says whether several datagrams may come together, over IPv4 or IPv6.
    pub fn joins(&self) -> bool {
        self.each().any(|socket| socket.joins)
    }
}

impl Sent {
    fn take(&mut self, run: &DatagramRun) {
        let count = run.count() as u64;
        self.datagrams += count;
        self.bytes += run.len as u64;
        if count > 1 {
            self.super_packets += 1;
            self.super_segments += count;
        }
    }

    /// Counts what is lost; handshakes are none of it, for they are tried at addresses that may not exist.
    fn lose(&mut self, outbox: &Outbox, run: &DatagramRun) {
        if outbox.bytes(run).first() == Some(&4) {
            self.lost += run.count() as u64;
        }
    }
}

/// Returns how many datagrams the running kernel divides one message into.
fn most_segments() -> usize {
    most_segments_of(&rustix::system::uname().release().to_string_lossy())
}

/// Linux takes 128 since 6.9 and 64 before; some count the headers as one more.
fn most_segments_of(release: &str) -> usize {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (6, 9) { 127 } else { 63 }
}

fn without_ipv6(error: &io::Error) -> bool {
    let absent = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL, Errno::PROTONOSUPPORT];
    Errno::from_io_error(error).is_some_and(|errno| absent.contains(&errno))
}

/// One socket of a lane, non-blocking.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    /// Most datagrams that may go as one message; 1 once the kernel said that the device cannot divide it.
    most: Cell<usize>,
    /// Whether the kernel may join what it receives.
    joins: bool,
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl UdpSocket {
    fn open(address: SocketAddr, mark: u32, offload: bool) -> Result<Self, UdpError> {
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
        // Kernels before 4.18 would ignore the size and send everything as one datagram.
        let divides = offload && set(&fd, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        let joins = offload && set(&fd, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
        rustix::net::bind(&fd, &address).map_err(|e| fail(e.into()))?;
        Ok(Self { fd, most: Cell::new(if divides { most_segments() } else { 1 }), joins })
    }

    /// Receives up to `BATCH` messages in place of what `inbox` held. Says how many.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn receive(&self, inbox: &mut Inbox) -> io::Result<usize> {
        inbox.clear();
        let mut names = [Name::EMPTY; BATCH];
        let mut controls = [ControlMessages::EMPTY; BATCH];
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

    fn send(&self, outbox: &Outbox, runs: &[DatagramRun], sent: &mut Sent) {
        let mut rest = runs;
        while let [first, others @ ..] = rest {
            match self.send_some(outbox, rest) {
                Ok(count) => {
                    rest[..count].iter().for_each(|run| sent.take(run));
                    rest = &rest[count..];
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOBUFS) if !sent.waited => {
                    sent.waited = true;
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

    /// Sends a run that the kernel refused in a plainer way: from any own address, then datagram by datagram.
    fn send_again(&self, outbox: &Outbox, run: &DatagramRun, error: Errno, sent: &mut Sent) {
        let several = run.count() > 1;
        if several && error == Errno::IO && self.most.replace(1) > 1 {
            // The device, or an IPsec policy on the route, cannot divide: every further run would fail alike.
            tracing::warn!("the kernel cannot divide datagrams on the way out: sending them one by one");
        }
        // EINVAL may be the own address, which is gone. Else it is this path, whose MTU is too small for the datagrams,
        // and says nothing about others.
        let anywhere = DatagramRun { endpoint: run.endpoint.remote.into(), ..*run };
        if anywhere != *run && self.send_some(outbox, &[anywhere]).is_ok() {
            sent.take(run);
        } else if several {
            sent.fallbacks += 1;
            self.send_singly(outbox, run, sent);
        } else {
            sent.lose(outbox, run);
        }
    }

    fn send_singly(&self, outbox: &Outbox, run: &DatagramRun, sent: &mut Sent) {
        let mut rest = *run;
        while rest.len > 0 {
            let mut singles = [rest; BATCH];
            let mut count = 0;
            while rest.len > 0 && count < BATCH {
                let len = rest.segment.min(rest.len);
                singles[count] = DatagramRun { len, segment: len, ..rest };
                (rest.start, rest.len, count) = (rest.start + len, rest.len - len, count + 1);
            }
            self.send(outbox, &singles[..count], sent);
        }
    }

    /// Sends as many runs as the kernel takes in one call; an error is about the first.
    fn send_some(&self, outbox: &Outbox, runs: &[DatagramRun]) -> Result<usize, Errno> {
        let runs = &runs[..runs.len().min(BATCH)];
        let mut names = [Name::EMPTY; BATCH];
        let mut controls = [ControlMessages::EMPTY; BATCH];
        // SAFETY: iovec and mmsghdr are plain data, for which all zeros is a valid value.
        let (mut parts, mut messages): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) = unsafe { mem::zeroed() };
        let mut filled = 0;
        for (i, run) in runs.iter().enumerate() {
            let segment = (run.count() > 1).then_some(run.segment);
            // Formed before the kernel said that it cannot.
            if run.count() > self.most.get() {
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
            let control = controls[i].write(run.endpoint.local, segment, (run.ecn, run.endpoint.remote.is_ipv4()));
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
    if ipv4 {
        let _ = set(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1);
        set(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        set(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)
    } else {
        sockopt::set_ipv6_v6only(fd, true)?;
        let _ = set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1);
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
    runs: Vec<DatagramRun>,
    received: ReceivedBatch,
}

/// What one call brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReceivedBatch {
    /// Datagrams.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages of several datagrams among them.
    pub super_packets: u64,
    /// Datagrams in these.
    pub super_segments: u64,
    /// Datagrams that were longer than any that we take, or from nowhere.
    pub cut: u64,
    /// How many the kernel has dropped since the socket was opened because its buffer was full, modulo 2^32; absent as
    /// long as it dropped none.
    pub overflows: Option<u32>,
}

impl Default for Inbox {
    fn default() -> Self {
        let runs = Vec::with_capacity(BATCH);
        Self { arena: vec![0; BATCH * SLOT].into(), runs, received: ReceivedBatch::default() }
    }
}

impl Inbox {
    /// Returns the messages of the last batch, each one or more datagrams.
    pub fn runs(&self) -> &[DatagramRun] {
        &self.runs
    }

    /// Returns the bytes of a message.
    pub fn bytes(&self, run: &DatagramRun) -> &[u8] {
        &self.arena[run.start..run.start + run.len]
    }

    /// Returns every datagram with where it came from and the ECN field of its header.
    #[cfg(test)]
    pub(crate) fn datagrams(&self) -> impl Iterator<Item = (Endpoint, mesh_proto::packet::Ecn, &[u8])> {
        self.runs.iter().flat_map(|run| {
            let bytes = &self.arena[run.start..run.start + run.len];
            // An empty datagram is one, too.
            let empty = bytes.is_empty().then_some(bytes);
            bytes.chunks(run.segment.max(1)).chain(empty).map(|datagram| (run.endpoint, run.ecn, datagram))
        })
    }

    /// Returns what the last call brought.
    pub fn received(&self) -> ReceivedBatch {
        self.received
    }

    fn clear(&mut self) {
        self.runs.clear();
        self.received = ReceivedBatch::default();
    }

    fn take(&mut self, slot: usize, len: usize, flags: libc::c_int, name: &Name, control: &ControlMessages) {
        let told = control.read();
        self.received.overflows = told.overflows.or(self.received.overflows);
        let Some(remote) = name.read().filter(|_| flags & libc::MSG_TRUNC == 0) else {
            self.received.cut += 1;
            return;
        };
        let len = len.min(SLOT);
        let segment = told.segment.filter(|&segment| segment > 0).unwrap_or(len).min(len);
        let endpoint = Endpoint { remote, local: told.local };
        let run = DatagramRun { endpoint, start: slot * SLOT, len, segment, ecn: told.ecn };
        let count = run.count() as u64;
        self.received.datagrams += count;
        self.received.bytes += len as u64;
        if count > 1 {
            self.received.super_packets += 1;
            self.received.super_segments += count;
        }
        self.runs.push(run);
    }
}

#[cfg(test)]
mod tests;
