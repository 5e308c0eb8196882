//! The TUN device: one queue per lane, each packet with a virtio header in front (linux/virtio_net.h).
//!
//! Queues are opened here, because the `tun` crate refuses more than one queue and sets neither
//! IFF_MULTI_QUEUE nor offloads. It opens the device where one queue is all there is: with one lane, and
//! where the kernel refuses several. In the latter case the lanes after the first share the queue for
//! writing and read nothing, so that a node keeps the lanes that its peers know.
//!
//! Super-packets: the kernel hands over up to 64 KB of a TCP stream, or of equal datagrams, as one packet and takes
//! as much (`mesh_proto::packet::gso`). Which kinds it takes depends on its version, and some versions refuse what they
//! should take; so each queue is probed when it is opened: one super-packet per kind whose IPv4 checksum is wrong.
//! A kernel that cannot take the kind says EINVAL before it looks any further; any other drops the packet, because
//! the interface is still down (EIO) or, where it is not, because of the checksum. Nothing hears of it either way.
//! Kernels before 5.1 look at the interface first and so tell nothing; they, and whatever a probe does not show,
//! are left to `packets`, which goes on singly after an EINVAL.
//!
//! The device goes when its last queue is closed. What keeps the mesh range closed is not the device but
//! the kernel's rules (see `kernel`).
#![expect(unsafe_code, reason = "opening a TUN device takes some ioctls, and a program for it bpf(2)")]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use mesh_proto::packet::gso::{Gso, VnetHeader};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::io::offloads::Gathers;
use crate::io::tun_steering_bpf;

/// Why the TUN device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The name does not fit the kernel.
    #[error("`{0}` is no interface name: use 1 to 15 characters without `/` and blanks")]
    Name(String),
    /// There is no /dev/net/tun.
    #[error("cannot open /dev/net/tun: {0}; load the module (`modprobe tun`) or give the container the device")]
    Device(io::Error),
    /// The kernel refused the interface.
    #[error("cannot create the interface {name}: {source}; {}", advice(source))]
    Create {
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::PERM | Errno::ACCESS) => "run as root, or with CAP_NET_ADMIN",
        Some(Errno::BUSY) => "another program holds it: stop that, or choose another `interface`",
        Some(Errno::INVAL) => {
            "an interface of that name and another kind exists: delete it, or choose another `interface`"
        }
        _ => "see the kernel's log",
    }
}

/// One queue of the device, non-blocking.
#[derive(Debug)]
pub struct Queue {
    fd: OwnedFd,
    reads: bool,
    gathers: Gathers,
}

impl Queue {
    /// Says whether packets arrive here; false for a lane that shares another's queue for writing.
    pub fn reads(&self) -> bool {
        self.reads
    }

    /// Says which super-packets the kernel takes.
    pub fn gathers(&self) -> Gathers {
        self.gathers
    }

    /// Reads one packet into `packet`, which should hold `MAX_PACKET` bytes; `None` when there is none.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn read(&self, packet: &mut [u8]) -> io::Result<Option<(usize, Option<VnetHeader>)>> {
        let mut header = [0; VnetHeader::LEN];
        let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(packet)];
        loop {
            match rustix::io::readv(&self.fd, &mut parts) {
                Ok(length) => {
                    let length = length.checked_sub(VnetHeader::LEN);
                    return Ok(length.map(|length| (length, VnetHeader::parse(&header))));
                }
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes one packet, given in parts of which the first is its virtio header.
    ///
    /// # Errors
    /// `INVAL` if the kernel cannot take a super-packet; others while the interface is down or full.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> Result<(), Errno> {
        loop {
            match rustix::io::writev(&self.fd, parts) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Finds out which super-packets the kernel takes; see above.
    fn probe(&self) -> Gathers {
        let takes = |gso| {
            let (device, packet) = probe_packet(gso);
            self.write(&[IoSlice::new(&device), IoSlice::new(&packet)]) != Err(Errno::INVAL)
        };
        Gathers { tcp: takes(Gso::Tcp4 { ecn: false }), udp: takes(Gso::Udp) }
    }
}

/// Makes a super-packet of two bytes in two segments, from and to the test network of RFC 5737, that no kernel
/// takes for whole: the checksum of its IPv4 header is 0.
fn probe_packet(gso: Gso) -> ([u8; VnetHeader::LEN], Vec<u8>) {
    let (protocol, headers, checksum_offset) = if gso == Gso::Udp { (17, 28u16, 6) } else { (6, 40, 16) };
    let total = headers + 2;
    let mut packet = vec![0; usize::from(total)];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[8..10].copy_from_slice(&[1, protocol]);
    packet[12..20].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
    // Ports 9, discard.
    packet[20..24].copy_from_slice(&[0, 9, 0, 9]);
    if gso == Gso::Udp {
        packet[24..26].copy_from_slice(&(total - 20).to_be_bytes());
    } else {
        // 20 bytes of header, ACK.
        packet[32..34].copy_from_slice(&[0x50, 0x10]);
    }
    let vnet = VnetHeader { needs_checksum: true, gso, gso_size: 1, checksum_start: 20, checksum_offset };
    (vnet.to_bytes(headers), packet)
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens the device with one queue per lane; without `offload` it neither gives nor takes super-packets, and no
/// unfinished checksums.
///
/// # Errors
/// Says what is wrong with the name, the device file or the interface.
pub fn open(name: &str, lanes: usize, offload: bool) -> Result<Vec<Queue>, TunError> {
    let valid = (1..libc::IFNAMSIZ).contains(&name.len()) && !name.contains(|c: char| c == '/' || c.is_whitespace());
    if !valid || matches!(name, "." | "..") {
        return Err(TunError::Name(name.to_owned()));
    }
    if lanes <= 1 {
        return Ok(vec![open_single(name, offload)?]);
    }
    match (0..lanes).map(|_| open_queue(name, offload)).collect::<Result<Vec<_>, _>>() {
        Ok(queues) => {
            if let Err(error) = steer(&queues[0].fd) {
                let hint = "flows may change lanes and be reordered then; give it CAP_BPF where the kernel knows that";
                tracing::info!(interface = name, %error, "the kernel chooses lanes by itself: {hint}");
            }
            Ok(queues)
        }
        Err(TunError::Create { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
            let first = open_single(name, offload)?;
            tracing::warn!(interface = name, "the kernel refuses several TUN queues: lane 0 reads for all");
            share(first, lanes).map_err(|source| create(name, source))
        }
        Err(error) => Err(error),
    }
}

/// Looks whether there is a device file that tunnels can be made with, and makes none.
///
/// # Errors
/// Why it cannot be opened.
pub fn look() -> io::Result<()> {
    rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    Ok(())
}

/// Opens one queue again after the device was deleted; the first lane to do so creates the device.
///
/// # Errors
/// As `open`.
pub fn reopen(name: &str, lanes: usize, offload: bool) -> Result<Queue, TunError> {
    if lanes <= 1 {
        return open_single(name, offload);
    }
    let queue = open_queue(name, offload)?;
    // That it works or not was said when the device was opened first.
    let _ = steer(&queue.fd);
    Ok(queue)
}

fn create(name: &str, source: io::Error) -> TunError {
    TunError::Create { name: name.to_owned(), source }
}

/// Opens a device of one queue by the `tun` crate, which configures nothing here: addresses, MTU and state are
/// set by netlink.
fn open_single(name: &str, offload: bool) -> Result<Queue, TunError> {
    if let Err(error) = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        return Err(TunError::Device(error.into()));
    }
    let mut configuration = tun::Configuration::default();
    configuration.tun_name(name).platform_config(|platform| {
        platform.ensure_root_privileges(false).vnet_hdr(true);
    });
    let device = tun::create(&configuration).map_err(|error| create(name, error.into()))?;
    // SAFETY: `into_raw_fd` gives up the device's descriptor, so nobody else closes or uses it.
    let fd = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
    adopt(name, fd, offload)
}

fn open_queue(name: &str, offload: bool) -> Result<Queue, TunError> {
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    let fd = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| TunError::Device(error.into()))?;
    set_interface(&fd, name, flags).map_err(|source| create(name, source))?;
    adopt(name, fd, offload)
}

fn share(first: Queue, lanes: usize) -> io::Result<Vec<Queue>> {
    let others = (1..lanes).map(|_| Ok(Queue { fd: first.fd.try_clone()?, reads: false, gathers: first.gathers }));
    let others: Vec<_> = others.collect::<io::Result<_>>()?;
    Ok(std::iter::once(first).chain(others).collect())
}

/// Sets what every queue needs: the header's length, no blocking, and what the kernel may leave to us.
fn adopt(name: &str, fd: OwnedFd, offload: bool) -> Result<Queue, TunError> {
    set_header_size(&fd).map_err(|source| create(name, source))?;
    let gives = if offload { ask_for_offloads(&fd) } else { set_offloads(&fd, 0) };
    gives.map_err(|source| create(name, source))?;
    rustix::io::ioctl_fionbio(&fd, true).map_err(|error| create(name, error.into()))?;
    let mut queue = Queue { fd, reads: true, gathers: Gathers::NONE };
    if offload {
        queue.gathers = queue.probe();
        tracing::debug!(interface = name, takes = ?queue.gathers, "super-packets");
    }
    Ok(queue)
}

/// Asks for all that the kernel can leave to us. Offloads are the device's, not the queue's: IPv6, of which the mesh
/// carries none, is asked for because the kernel gives UDP (since 6.2) for both families or for neither.
fn ask_for_offloads(fd: &OwnedFd) -> io::Result<()> {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    set_offloads(fd, tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6)
        .or_else(|_| set_offloads(fd, tcp))
        .or_else(|_| set_offloads(fd, 0))
}

fn set_interface(fd: &OwnedFd, name: &str, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: an ifreq is plain data, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call returns.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

fn set_header_size(fd: &OwnedFd) -> io::Result<()> {
    let size = VnetHeader::LEN as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives until the call returns.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })
}

fn set_offloads(fd: &OwnedFd, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
}

/// Has the kernel choose queues by our program. It stays with the device, not with the queue.
fn steer(queue: &OwnedFd) -> io::Result<()> {
    let program = load()?;
    let number = program.as_raw_fd();
    // SAFETY: TUNSETSTEERINGEBPF reads one int, which lives until the call returns.
    checked(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETSTEERINGEBPF, &raw const number) })
}

/// The arguments of BPF_PROG_LOAD as far as they are used (linux/bpf.h).
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    program: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
}

/// Gives the kernel the program that chooses queues.
fn load() -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const SOCKET_FILTER: u32 = 1;
    let load = Load {
        kind: SOCKET_FILTER,
        instructions: tun_steering_bpf::PROGRAM.len() as u32,
        program: tun_steering_bpf::PROGRAM.as_ptr().addr() as u64,
        licence: c"Apache-2.0".as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads as many bytes of `load` as it has, and through it the instructions, of which `load` says
    // how many there are, and a string that ends with a zero; all of them are constants or live until it returns.
    let number = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor, so nobody else closes or uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(number as libc::c_int) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use mesh_proto::packet::{Header, complete};

    use super::*;

    #[test]
    fn a_name_that_is_none_is_refused_in_words() {
        for name in ["", "a/b", "a b", "sixteen-letters-x", "."] {
            assert!(matches!(open(name, 1, true), Err(TunError::Name(_))), "{name}");
        }
    }

    #[test]
    fn no_kernel_takes_a_probe_for_a_packet() {
        for gso in [Gso::Tcp4 { ecn: false }, Gso::Udp] {
            let (device, packet) = probe_packet(gso);
            let vnet = VnetHeader::parse(&device).expect("a device header");
            let header = Header::parse(&packet).expect("a packet, but for its checksum");
            assert_eq!(vnet.gso, gso);
            assert_eq!(header.headers_len(&packet) + 2, packet.len());
            let mut completed = packet.to_vec();
            complete(&mut completed, &header);
            assert_ne!(completed, packet);
        }
    }

    #[test]
    fn a_busy_interface_is_said_to_be_busy() {
        let error = create("mesh0", io::Error::from_raw_os_error(libc::EBUSY));
        let text = error.to_string();
        assert!(text.contains("mesh0") && text.contains("another program holds it"), "{text}");
        let denied = create("mesh0", io::Error::from_raw_os_error(libc::EPERM)).to_string();
        assert!(denied.contains("CAP_NET_ADMIN"), "{denied}");
    }
}
