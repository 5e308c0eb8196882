//! Whether programs of this host find names of the mesh: the host's resolver is asked for one, as they would.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use mesh_proto::model::netmap::NetMap;
use mesh_proto::ops::status as doc;

/// The file that says who is asked.
const RESOLV: &str = "/etc/resolv.conf";
/// Servers that a resolver asks (MAXNS of resolv.h).
const MAX_SERVERS: usize = 3;
/// How long one of them may take here.
const PATIENCE: Duration = Duration::from_millis(500);
/// What the kubelet sets in every pod.
const KUBERNETES: &str = "KUBERNETES_SERVICE_HOST";
/// Who asks with systemd-resolved asks it there.
const RESOLVED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);

/// Says that the host's resolver does not ask this node, if that is so. Not on Kubernetes, where pods are told whom to ask,
/// and hosts resolve no names of the cluster either.
pub(crate) fn note(map: &NetMap, interface: &str) -> Option<doc::Note> {
    if std::env::var_os(KUBERNETES).is_some() {
        return None;
    }
    let (key, service) = map.services.first_key_value()?;
    let domain = map.mesh.domains.first()?;
    let name = format!("{}.{}.{domain}", key.name, key.namespace);
    let servers = servers(&std::fs::read_to_string(RESOLV).unwrap_or_default());
    let dns = map.mesh.range.dns().0;
    if servers.contains(&IpAddr::V4(dns)) || servers.iter().any(|&server| knows(server, &name, service.vip.0)) {
        return None;
    }
    let asked: Vec<String> = servers.iter().map(ToString::to_string).collect();
    let asked = if asked.is_empty() { "nobody".to_owned() } else { asked.join(", ") };
    Some(doc::Note {
        id: "resolver".into(),
        cause: format!(
            "programs of this host do not find names of the mesh, such as {name}: its resolver ({RESOLV}) asks {asked}, and not this node at {dns}; pods are not concerned"
        ),
        command: if servers.contains(&IpAddr::V4(RESOLVED)) {
            format!("resolvectl dns {interface} {dns} && resolvectl domain {interface} '~{domain}'")
        } else {
            format!("printf 'nameserver {dns}\\n%s\\n' \"$(cat {RESOLV})\" > {RESOLV}")
        },
    })
}

/// Reads who is asked, of a resolv.conf; at most `MAX_SERVERS`.
fn servers(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| line.trim().strip_prefix("nameserver")?.split_whitespace().next()?.parse().ok();
    text.lines().filter_map(server).take(MAX_SERVERS).collect()
}

/// Asks one server for a name; whether it answers with that address.
fn knows(server: IpAddr, name: &str, address: Ipv4Addr) -> bool {
    ask(server, name).is_ok_and(|answer| has_address(&answer, address))
}

fn ask(server: IpAddr, name: &str) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((server, 53))?;
    socket.send(&question(name))?;
    let mut answer = vec![0; 1232];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

/// A question for the IPv4 addresses of a name (RFC 1035, 4.1), which wants recursion.
fn question(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x6d, 0x65, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap_or(0));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// Says whether an answer without an error holds an address: four bytes long, in a record.
fn has_address(answer: &[u8], address: Ipv4Addr) -> bool {
    let [a, b, c, d] = address.octets();
    answer.get(3).is_some_and(|flags| flags & 0x0f == 0) && answer.windows(6).any(|bytes| bytes == [0, 4, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_as_a_resolver_reads_it() {
        let text = "# nameserver 192.0.2.1\nsearch x\nnameserver 192.0.2.2\n nameserver 2001:db8::1 # no\nnameserver\n";
        let expected: Vec<IpAddr> = ["192.0.2.2", "2001:db8::1"].iter().filter_map(|a| a.parse().ok()).collect();
        assert_eq!(servers(text), expected);
        assert_eq!(servers(&"nameserver 192.0.2.2\n".repeat(9)).len(), MAX_SERVERS);
    }

    #[test]
    fn a_question_is_as_long_as_its_name_and_an_error_is_no_answer() {
        assert_eq!(question("web.mesh").len(), 12 + 1 + 3 + 1 + 4 + 5);
        let mut answer = question("web.mesh");
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 241, 0, 0, 1]);
        assert!(has_address(&answer, Ipv4Addr::new(241, 0, 0, 1)));
        assert!(!has_address(&answer, Ipv4Addr::new(241, 0, 0, 2)));
        answer[3] = 5;
        assert!(!has_address(&answer, Ipv4Addr::new(241, 0, 0, 1)));
    }
}
