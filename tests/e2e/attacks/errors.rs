//! ICMP errors that a pod invents.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use mesh_tests::daemon::wait_until;
use mesh_tests::netns::Namespace;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, sendto, socket};

use super::ground::{AttackGround, BRIDGED, ECHO, QUIET, Witness, own, take_out};

const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);

/// Says from `source` that nobody listens at `to`, where `from` sent a datagram.
fn says_unreachable(attacker: &Namespace, source: Ipv4Addr, from: SocketAddrV4, to: SocketAddrV4) {
    let mut quoted = vec![0x45, 0, 0, 36, 0, 0, 0x40, 0, 63, 17, 0, 0];
    quoted.extend(from.ip().octets());
    quoted.extend(to.ip().octets());
    let checksum = sum(&quoted);
    quoted[10..12].copy_from_slice(&checksum);
    quoted.extend(from.port().to_be_bytes());
    quoted.extend(to.port().to_be_bytes());
    quoted.extend([0, 16, 0, 0]);
    let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
    message.extend(quoted);
    let checksum = sum(&message);
    message[2..4].copy_from_slice(&checksum);
    attacker.run(move || {
        let raw: OwnedFd =
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp).unwrap();
        bind(raw.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0))).unwrap();
        let target = SockaddrIn::from(SocketAddrV4::new(*from.ip(), 0));
        sendto(raw.as_raw_fd(), &message, &target, MsgFlags::empty()).unwrap();
    });
}

fn sum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn connected(ground: &AttackGround, port: u16) -> UdpSocket {
    let vip = ground.b.status().unwrap().services.into_iter().find(|s| s.name.as_str() == "back").unwrap().vip.0;
    let socket = ground.far.run(move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((vip, port))?;
        Ok::<_, io::Error>(socket)
    });
    let socket = socket.unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket
}

fn asks(socket: &UdpSocket, payload: &[u8]) -> io::Result<()> {
    socket.send(payload)?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    if buffer[..length] == *payload { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

pub(crate) fn from_an_invented_router(ground: &AttackGround) {
    let server = Witness::start(&ground.pods[0], BRIDGED, ECHO).unwrap();
    let socket = connected(ground, ECHO);
    let opening = ground.word("opening");
    assert!(wait_until(Duration::from_secs(5), || asks(&socket, &opening).is_ok()), "the server answers");
    let Some(SocketAddr::V4(caller)) = server.heard(&opening) else { panic!("the caller is heard") };
    own(&ground.pods[1], ROUTER);

    // The kernel's guard stops it first; the engine does so where that is missing.
    for guarded in [true, false] {
        for _ in 0..3 {
            if !guarded {
                take_out(&ground.a.namespace, "sources");
                take_out(&ground.a.namespace, "forwarded");
            }
            says_unreachable(&ground.pods[1], ROUTER, caller, SocketAddrV4::new(BRIDGED, ECHO));
            let told = asks(&socket, &ground.word("asked"));
            assert!(told.is_ok(), "with the guard: {guarded}: the far program is told {told:?}");
        }
    }
    // What the pod itself says is believed.
    let quiet = connected(ground, QUIET);
    let refused = wait_until(Duration::from_secs(5), || {
        asks(&quiet, b"nobody").is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
    });
    assert!(refused, "an honest error arrives");
}
