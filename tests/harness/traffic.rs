//! Packets that tests send and receive inside namespaces: TCP, UDP, ICMP echo, DNS.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::netns::Namespace;

/// How long one attempt may take.
const PATIENCE: Duration = Duration::from_millis(900);

/// A server that answers every connection with the caller's address, and then with what it is sent.
/// It ends with the process, or when its listener fails.
///
/// # Errors
/// If the port is taken.
pub fn serve_tcp(namespace: &Namespace, port: u16) -> io::Result<JoinHandle<()>> {
    let listener = namespace.run(move || TcpListener::bind(("0.0.0.0", port)))?;
    Ok(std::thread::spawn(move || {
        while let Ok((mut stream, caller)) = listener.accept() {
            std::thread::spawn(move || {
                writeln!(stream, "{}", caller.ip())?;
                let mut reader = stream.try_clone()?;
                io::copy(&mut reader, &mut stream)
            });
        }
    }))
}

/// A server that sends every datagram back.
///
/// # Errors
/// If the port is taken.
pub fn serve_udp(namespace: &Namespace, port: u16) -> io::Result<JoinHandle<()>> {
    let socket = namespace.run(move || UdpSocket::bind(("0.0.0.0", port)))?;
    Ok(std::thread::spawn(move || {
        let mut buffer = [0; 16_384];
        while let Ok((length, caller)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], caller);
        }
    }))
}

/// Connects from inside a namespace.
///
/// # Errors
/// As the kernel says: `ConnectionRefused`, `TimedOut` after 0.9 s, …
pub fn connect(from: &Namespace, to: (Ipv4Addr, u16)) -> io::Result<TcpStream> {
    let stream = from.run(move || TcpStream::connect_timeout(&SocketAddr::from(to), PATIENCE))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// Connects and returns the address that the server saw.
///
/// # Errors
/// As `connect`; `InvalidData` if the server says something else.
pub fn seen_as(from: &Namespace, to: (Ipv4Addr, u16)) -> io::Result<Ipv4Addr> {
    let mut stream = connect(from, to)?;
    greeting(&mut stream)
}

/// Reads the server's first line.
///
/// # Errors
/// What the stream says; `InvalidData` if it is no address.
pub fn greeting(stream: &mut TcpStream) -> io::Result<Ipv4Addr> {
    let (mut line, mut byte) = (String::new(), [0]);
    while line.len() < 64 {
        stream.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            return line.parse().map_err(|_| io::ErrorKind::InvalidData.into());
        }
        line.push(byte[0].into());
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Sends bytes to an echoing server and says whether the same came back.
///
/// # Errors
/// What the stream says.
pub fn echoes(stream: &TcpStream, bytes: usize) -> io::Result<bool> {
    let sent: Vec<u8> = (0..bytes).map(|i| (i * 7 + i / 251) as u8).collect();
    let (mut writer, mut reader) = (stream.try_clone()?, stream.try_clone()?);
    let expected = sent.clone();
    let writing = std::thread::spawn(move || writer.write_all(&sent));
    let mut back = vec![0; bytes];
    reader.read_exact(&mut back)?;
    let _ = writing.join();
    Ok(back == expected)
}

/// Sends a datagram and returns who answered, if the same bytes came back.
///
/// # Errors
/// What the socket says; `TimedOut` or `WouldBlock` without an answer.
pub fn udp_echo(from: &Namespace, to: (Ipv4Addr, u16), bytes: usize) -> io::Result<SocketAddr> {
    let socket = from.run(|| UdpSocket::bind("0.0.0.0:0"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let payload = vec![0x5A; bytes];
    socket.send_to(&payload, to)?;
    let mut buffer = vec![0; 65_536];
    let (length, who) = socket.recv_from(&mut buffer)?;
    if buffer[..length] == payload { Ok(who) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Pings and returns how long the answer took.
///
/// # Errors
/// What the socket says; `TimedOut` without an answer.
pub fn ping(from: &Namespace, to: Ipv4Addr) -> io::Result<Duration> {
    let socket: OwnedFd =
        from.run(|| socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(100))?;
    let mut request = vec![8, 0, 0, 0, 0x4D, 0x45, 0, 1];
    request.extend([0xA5; 24]);
    let pair = |p: &[u8]| u32::from(p[0]) << 8 | u32::from(p[1]);
    let mut sum: u32 = request.chunks(2).map(pair).sum();
    sum = (sum & 0xFFFF) + (sum >> 16);
    let sum = !u16::try_from(sum & 0xFFFF).unwrap_or(0);
    request[2..4].copy_from_slice(&sum.to_be_bytes());
    let target = SockaddrIn::from(std::net::SocketAddrV4::new(to, 0));
    let began = Instant::now();
    sendto(socket.as_raw_fd(), &request, &target, MsgFlags::empty())?;
    let mut buffer = [0; 256];
    while began.elapsed() < PATIENCE {
        let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) else {
            continue;
        };
        let answer = &buffer[..length];
        // An IPv4 header without options, then type 0 with our identifier.
        if length >= 28 && answer[12..16] == to.octets() && answer[20] == 0 && answer[24..26] == [0x4D, 0x45] {
            return Ok(began.elapsed());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// What a name server answered: the response code and the IPv4 addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EchoAnswer {
    /// 0 is no error, 3 is a name that does not exist.
    pub code: u8,
    /// Whether it speaks with authority.
    pub authoritative: bool,
    /// The addresses.
    pub addresses: Vec<Ipv4Addr>,
}

/// Asks a name server for a type-A record, over UDP or TCP.
///
/// # Errors
/// What the socket says; `InvalidData` for an answer that cannot be read.
pub fn resolve(from: &Namespace, server: Ipv4Addr, name: &str, tcp: bool) -> io::Result<EchoAnswer> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap_or(63));
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let answer = if tcp {
        let mut stream = connect(from, (server, 53))?;
        stream.write_all(&u16::try_from(query.len()).unwrap_or(0).to_be_bytes())?;
        stream.write_all(&query)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer)?;
        answer
    } else {
        let socket = from.run(|| UdpSocket::bind("0.0.0.0:0"))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(&query, (server, 53))?;
        let mut answer = vec![0; 2048];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        answer
    };
    read_answer(&answer, query.len()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn read_answer(answer: &[u8], question_end: usize) -> Option<EchoAnswer> {
    let header = answer.get(..12)?;
    let count = u16::from_be_bytes([header[6], header[7]]);
    let (mut at, mut addresses) = (question_end, Vec::new());
    for _ in 0..count {
        // A compressed name is two bytes, a spelt one ends with a zero.
        at = match answer.get(at)? {
            byte if byte & 0xC0 == 0xC0 => at + 2,
            _ => at + answer[at..].iter().position(|b| *b == 0)? + 1,
        };
        let record = answer.get(at..at + 10)?;
        let length = usize::from(u16::from_be_bytes([record[8], record[9]]));
        let data = answer.get(at + 10..at + 10 + length)?;
        if record[..2] == [0, 1] {
            addresses.push(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?));
        }
        at += 10 + length;
    }
    Some(EchoAnswer { code: header[3] & 15, authoritative: header[2] & 4 != 0, addresses })
}
