#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};

use hickory_server::proto::op::Query;
use mesh_proto::base::addr::{Flat, MeshRange};
use mesh_proto::base::id::{NodeId, Revision, ServiceId};
use mesh_proto::model::netmap::{Mesh, NetMap, OwnNode, Service, ServicePort, Transport};
use mesh_proto::verifier::VerifiedMap;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

fn netmap(services: u16) -> NetMap {
    let service = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let port = ServicePort { name: None, transport: Transport::Tcp, port: 80, target: 80 };
        let service = Service {
            grants: Default::default(),
            id: ServiceId(number.into()),
            vip: Flat(std::net::Ipv4Addr::new(241, 0, high, low)),
            ports: vec![port],
            backends: vec![],
            sticky: false,
            strict: false,
        };
        (format!("svc{number}").parse().unwrap(), service)
    };
    NetMap {
        epoch: Default::default(),
        sites: Default::default(),
        revision: Revision(7),
        mesh: Mesh {
            name: "test".parse().unwrap(),
            range: MeshRange::default(),
            domains: vec!["mesh.internal".parse().unwrap()],
            coordinators: Vec::new(),
            lock: None,
        },
        node: OwnNode {
            sequence: 0,
            id: NodeId(1),
            name: "a".parse().unwrap(),
            site: "s1".parse().unwrap(),
            address: Flat(std::net::Ipv4Addr::new(241, 1, 0, 1)),
            blocks: vec![],
            guarded: true,
        },
        peers: BTreeMap::new(),
        services: (1..=services).map(service).collect(),
        names: Default::default(),
        rules: vec![],
        warnings: vec![],
    }
}

/// A server under test, on an address of its own.
struct Served {
    address: SocketAddr,
    view: watch::Sender<Arc<View>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<io::Result<()>>,
}

impl Served {
    async fn start(upstreams: Vec<SocketAddr>) -> Self {
        let address = own_address();
        let (view, views) = watch::channel(Arc::new(View::compile(VerifiedMap::by_hand(netmap(3)))));
        let (stop, stopped) = oneshot::channel();
        let stopped = async move { drop(stopped.await) };
        let task = tokio::spawn(serve(vec![address], views, upstreams, stopped));
        let served = Self { address, view, stop, task };
        // The sockets are open as soon as TCP accepts.
        while TcpStream::connect(address).await.is_err() {
            tokio::task::yield_now().await;
        }
        served
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Message {
        by_udp(self.address, &question(name, kind)).await
    }

    async fn end(self) {
        drop(self.stop);
        timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

/// A loopback address of its own for every server, so that no other test or process holds its ports.
fn own_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    ([127, 64 | high, low, NEXT.fetch_add(1, Ordering::Relaxed)], 5353).into()
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

async fn by_udp(to: SocketAddr, question: &[u8]) -> Message {
    timeout(PATIENCE, ask(to, question, Protocol::Udp)).await.unwrap().unwrap()
}

fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn a_service_is_answered_with_authority_over_udp_and_tcp() {
    let served = Served::start(vec![]).await;
    let question = question("SVC1.default.Mesh.internal.", RecordType::A);

    for protocol in [Protocol::Udp, Protocol::Tcp] {
        let asked = timeout(PATIENCE, ask(served.address, &question, protocol));
        let message = asked.await.unwrap().unwrap();
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
        assert!(message.metadata.authoritative);
        assert_eq!(addresses(&message), ["241.0.0.1"]);
        assert_eq!(message.answers[0].ttl, 5);
        assert_eq!(message.answers[0].name.to_ascii(), "SVC1.default.Mesh.internal.");
    }
    served.end().await;
}

#[tokio::test]
async fn what_does_not_exist_is_denied_with_a_start_of_authority() {
    let served = Served::start(vec![]).await;

    for (name, kind, code, zone) in [
        ("nope.mesh.internal.", RecordType::A, ResponseCode::NXDomain, "mesh.internal."),
        ("svc1.mesh.internal.", RecordType::AAAA, ResponseCode::NoError, "mesh.internal."),
        ("svc1.mesh.internal.", RecordType::TXT, ResponseCode::NoError, "mesh.internal."),
        ("9.9.9.241.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain, "241.in-addr.arpa."),
    ] {
        let message = served.ask(name, kind).await;
        assert_eq!(message.metadata.response_code, code, "{name} {kind}");
        assert!(message.metadata.authoritative && message.answers.is_empty(), "{name} {kind}");
        assert_eq!(message.authorities.len(), 1, "{name} {kind}");
        assert_eq!(message.authorities[0].record_type(), RecordType::SOA);
        assert_eq!(message.authorities[0].name.to_ascii(), zone);
    }
    let message = served.ask("1.0.0.241.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(addresses(&message), ["svc1.default.mesh.internal."]);
    served.end().await;
}

#[tokio::test]
async fn a_new_map_is_answered_from_at_once() {
    let served = Served::start(vec![]).await;
    let before = served.ask("svc4.mesh.internal.", RecordType::A).await;

    served.view.send_replace(Arc::new(View::compile(VerifiedMap::by_hand(netmap(4)))));

    let after = served.ask("svc4.mesh.internal.", RecordType::A).await;
    assert_eq!(before.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(addresses(&after), ["241.0.0.4"]);
    served.end().await;
}

#[tokio::test]
async fn other_names_are_refused_without_upstreams_and_forwarded_with_one() {
    let alone = Served::start(vec![]).await;
    let message = alone.ask("example.com.", RecordType::A).await;
    assert_eq!(message.metadata.response_code, ResponseCode::Refused);

    // Any server that has the name will do as upstream, so one that serves another domain.
    let dead = own_address();
    let (_view, views) = {
        let mut other = netmap(2);
        other.mesh.domains = vec!["example.com".parse().unwrap()];
        watch::channel(Arc::new(View::compile(VerifiedMap::by_hand(other))))
    };
    let upstream = own_address();
    let upstream_task = tokio::spawn(serve(vec![upstream], views, vec![], std::future::pending()));
    let forwarding = Served::start(vec![dead, upstream]).await;
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        let question = question("svc2.example.com.", RecordType::A);
        let asked = timeout(PATIENCE, ask(forwarding.address, &question, protocol));
        let message = asked.await.unwrap().unwrap();
        assert_eq!(addresses(&message), ["241.0.0.2"]);
        assert!(!message.metadata.authoritative);
    }
    // The mesh's own names stay here, whoever is upstream.
    let message = forwarding.ask("nope.mesh.internal.", RecordType::A).await;
    assert_eq!(message.metadata.response_code, ResponseCode::NXDomain);
    assert!(message.metadata.authoritative);

    upstream_task.abort();
    alone.end().await;
    forwarding.end().await;
}

#[tokio::test]
async fn malformed_questions_never_end_the_server() {
    let served = Served::start(vec![]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let good = question("svc1.mesh.internal.", RecordType::A);

    for end in 0..good.len() {
        socket.send_to(&good[..end], served.address).await.unwrap();
    }
    for place in 0..good.len() {
        for value in [0x00, 0xc0, 0x0c, 0xff] {
            let mut bad = good.clone();
            bad[place] = value;
            socket.send_to(&bad, served.address).await.unwrap();
        }
    }
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    stream.write_all(&[0xff; 300]).await.unwrap();
    drop(stream);

    let message = served.ask("svc1.mesh.internal.", RecordType::A).await;
    assert_eq!(addresses(&message), ["241.0.0.1"]);
    served.end().await;
}

#[tokio::test]
async fn transfers_updates_and_other_classes_are_refused() {
    let served = Served::start(vec![]).await;
    let code = |message: Message| message.metadata.response_code;

    let transfer = by_udp(served.address, &question("mesh.internal.", RecordType::AXFR)).await;
    assert_eq!(code(transfer), ResponseCode::Refused);
    let mut chaos = question("version.bind.", RecordType::TXT);
    let last = chaos.len() - 1;
    chaos[last] = 3;
    assert_eq!(code(by_udp(served.address, &chaos).await), ResponseCode::Refused);
    let mut notify = question("mesh.internal.", RecordType::SOA);
    notify[2] |= 4 << 3;
    assert_eq!(code(by_udp(served.address, &notify).await), ResponseCode::NotImp);
    served.end().await;
}

#[tokio::test]
async fn an_address_that_is_still_taken_is_waited_for() {
    let holder = std::net::UdpSocket::bind(own_address()).unwrap();
    let address = holder.local_addr().unwrap();
    let (_view, views) = watch::channel(Arc::new(View::compile(VerifiedMap::by_hand(netmap(1)))));
    let task = tokio::spawn(serve(vec![address], views, vec![], std::future::pending()));
    tokio::task::yield_now().await;

    drop(holder);

    let question = question("svc1.mesh.internal.", RecordType::A);
    let answered = timeout(PATIENCE, async {
        loop {
            // Nobody listens yet, which loopback tells at once.
            if let Ok(message) = ask(address, &question, Protocol::Udp).await {
                return message;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(addresses(&answered.await.unwrap()), ["241.0.0.1"]);
    task.abort();
}
