//! The framing below nftables: netlink messages, nested attributes, batches and dumps (linux/netfilter/nfnetlink.h).
//!
//! A request is answered inside the system call that sends it, so the socket never blocks: what is not
//! there after sending will not come.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket as NetlinkSocket, SocketAddr};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const SUBSYS_NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Length of nlmsghdr plus nfgenmsg.
const HEADERS: usize = 20;
/// Larger than any datagram of a dump, which the kernel sizes by what the reader offered, up to 32 KiB.
const RECEIVE: usize = 64 * 1024;
/// How often a dump that others disturbed is started anew.
const ATTEMPTS: usize = 5;

/// One message under construction, or several in a row.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Appends one nf_tables message whose attributes `fill` writes.
    pub(super) fn message(&mut self, kind: u16, flags: u16, family: u8, fill: impl FnOnce(&mut Self)) {
        self.raw_message((SUBSYS_NFTABLES << 8) | kind, flags, family, 0, fill);
    }

    fn raw_message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        fill(self);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Appends an attribute.
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// Appends a text attribute, with its final zero byte.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    /// Appends a number, in network order as nf_tables wants all of them.
    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Appends an attribute that holds attributes.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The attributes in a message or in an attribute; stops at the first malformed one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// Returns the first attribute of a kind.
    pub(super) fn find(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter().find_map(|(k, value)| (k == kind).then_some(value))
    }

    /// Returns the attributes inside the first attribute of a kind.
    pub(super) fn nested(self, kind: u16) -> Self {
        Self(self.find(kind).unwrap_or_default())
    }

    /// Returns a text attribute without its final zero byte.
    pub(super) fn text(self, kind: u16) -> Option<String> {
        let bytes = self.find(kind)?;
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    /// Returns a number of four bytes in network order.
    pub(super) fn number(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }

    /// Returns a number of eight bytes in network order.
    pub(super) fn long(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// A message of a dump: its family and its attributes.
#[derive(Debug)]
pub(super) struct Reply {
    /// The family of the object.
    pub(super) family: u8,
    body: Vec<u8>,
}

impl Reply {
    fn read(payload: &[u8]) -> Option<Self> {
        let [family, _, _, _, body @ ..] = payload else { return None };
        Some(Self { family: *family, body: body.to_vec() })
    }

    /// Returns the attributes.
    pub(super) fn attributes(&self) -> Attributes<'_> {
        Attributes(&self.body)
    }
}

/// Sends a batch, which the kernel takes whole or not at all.
pub(super) fn commit(body: Writer) -> io::Result<()> {
    if body.bytes.is_empty() {
        return Ok(());
    }
    commit_by(&open()?, body)
}

/// Sends a batch by a socket that stays open, and owns what the batch says that it owns; returns it with its number.
pub(super) fn commit_owning(body: Writer) -> io::Result<(OwningSocket, u32)> {
    let socket = open()?;
    commit_by(&socket, body)?;
    let mut address = SocketAddr::new(0, 0);
    socket.get_address(&mut address)?;
    Ok((OwningSocket(socket), address.port_number()))
}

/// An open socket. What it owns goes with it.
#[derive(Debug)]
pub(super) struct OwningSocket(#[expect(dead_code, reason = "what it owns lives as long as it is open")] NetlinkSocket);

fn commit_by(socket: &NetlinkSocket, mut body: Writer) -> io::Result<()> {
    acknowledge_last(&mut body.bytes);
    let mut writer = Writer::default();
    writer.raw_message(BATCH_BEGIN, 0, 0, SUBSYS_NFTABLES, |_| {});
    writer.bytes.extend_from_slice(&body.bytes);
    writer.raw_message(BATCH_END, 0, 0, SUBSYS_NFTABLES, |_| {});

    send(socket, &writer.bytes)?;
    let mut acknowledged = false;
    while let Some(datagram) = receive(socket)? {
        for message in messages(&datagram) {
            if message.kind == NLMSG_ERROR {
                error_of(message.payload)?;
                acknowledged = true;
            }
        }
    }
    if acknowledged { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPROTO)) }
}

/// Reads one object; `None` if it is not there.
pub(super) fn get(kind: u16, family: u8, fill: impl FnOnce(&mut Writer)) -> io::Result<Option<Reply>> {
    let mut writer = Writer::default();
    writer.message(kind, 0, family, fill);
    let socket = open()?;
    send(&socket, &writer.bytes)?;
    let Some(datagram) = receive(&socket)? else { return Ok(None) };
    let Some(message) = messages(&datagram).next() else { return Ok(None) };
    if message.kind != NLMSG_ERROR {
        return Ok(Reply::read(message.payload));
    }
    match error_of(message.payload) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        other => other.map(|()| None),
    }
}

/// Reads all objects of a kind, starting anew while others change them meanwhile.
pub(super) fn dump(kind: u16, family: u8, fill: impl Fn(&mut Writer)) -> io::Result<Vec<Reply>> {
    for _ in 0..ATTEMPTS {
        if let Some(replies) = dump_once(kind, family, &fill)? {
            return Ok(replies);
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINTR))
}

fn dump_once(kind: u16, family: u8, fill: &impl Fn(&mut Writer)) -> io::Result<Option<Vec<Reply>>> {
    let mut writer = Writer::default();
    writer.message(kind, NLM_F_DUMP, family, fill);
    let socket = open()?;
    send(&socket, &writer.bytes)?;
    let mut replies = Vec::new();
    while let Some(datagram) = receive(&socket)? {
        for message in messages(&datagram) {
            if message.flags & NLM_F_DUMP_INTR != 0 {
                return Ok(None);
            }
            match message.kind {
                NLMSG_ERROR => error_of(message.payload)?,
                NLMSG_DONE => {
                    error_of(message.payload)?;
                    return Ok(Some(replies));
                }
                _ => replies.extend(Reply::read(message.payload)),
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::EPROTO))
}

fn open() -> io::Result<NetlinkSocket> {
    let mut socket = NetlinkSocket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

fn send(socket: &NetlinkSocket, bytes: &[u8]) -> io::Result<()> {
    socket.send_to(bytes, &SocketAddr::new(0, 0), 0).map(drop)
}

fn receive(socket: &NetlinkSocket) -> io::Result<Option<Vec<u8>>> {
    let mut datagram = Vec::with_capacity(RECEIVE);
    match socket.recv_from(&mut datagram, 0) {
        Ok(_) => Ok(Some(datagram)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks for an acknowledgement of the last message only: all come through one small receive buffer.
fn acknowledge_last(bytes: &mut [u8]) {
    let mut start = 0;
    while let Some(header) = bytes.get(start..start + 4) {
        let length = header.try_into().map(u32::from_ne_bytes).unwrap_or(0) as usize;
        let next = start + length.max(HEADERS);
        if next >= bytes.len() {
            let flags = u16::from_ne_bytes([bytes[start + 6], bytes[start + 7]]) | NLM_F_ACK;
            bytes[start + 6..start + 8].copy_from_slice(&flags.to_ne_bytes());
            return;
        }
        start = next;
    }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    payload: &'a [u8],
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let message = Message {
            kind: u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?),
            flags: u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?),
            payload: bytes.get(16..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Reads the negative error number at the start of an error or done message; 0 is success.
fn error_of(payload: &[u8]) -> io::Result<()> {
    let code = payload.first_chunk::<4>().map_or(0, |b| i32::from_ne_bytes(*b));
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_read_what_was_written_and_stop_at_malformed_ones() {
        let mut writer = Writer::default();
        writer.text(1, "meshd");
        writer.nest(2, |w| w.number(3, 7));
        let attributes = Attributes(&writer.bytes);

        assert_eq!(attributes.text(1).as_deref(), Some("meshd"));
        assert_eq!(attributes.nested(2).number(3), Some(7));
        for end in 0..writer.bytes.len() {
            let _bounded = Attributes(&writer.bytes[..end]).count();
        }
        for length in [0u16, 1, 3, 0xffff] {
            let bytes = [length.to_ne_bytes(), [1, 0]].concat();
            assert_eq!(Attributes(&bytes).count(), 0, "length {length}");
        }
    }
}
