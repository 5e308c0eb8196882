//! Users and certificates: what works, and what an operator is told who got something wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message;

use super::*;
use crate::store::tests::cluster::is_there;

#[derive(Clone, PartialEq, Message)]
struct UserAdd {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    password: String,
}

#[derive(Clone, PartialEq, Message)]
struct UserGrantRole {
    #[prost(string, tag = "1")]
    user: String,
    #[prost(string, tag = "2")]
    role: String,
}

/// `RoleAdd`, and `AuthEnable` without a name.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Grant {
    #[prost(string, tag = "1")]
    role: String,
    #[prost(message, optional, tag = "2")]
    permission: Option<Permission>,
}

#[derive(Clone, PartialEq, Message)]
struct Permission {
    /// 2: reading and writing.
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    range_end: Vec<u8>,
}

/// Alters the users of an etcd that asks for none yet.
fn ask<Q: Message + Clone + 'static>(store: &Etcd, path: &'static str, request: Q) {
    let session = Arc::clone(&store.session);
    let asked = store.wait(async move {
        let asked: Result<message::StatusRequest, _> = session.client.call(path, &request).await;
        asked.map_err(|error| error.explain("use", false))
    });
    asked.unwrap();
}

fn user(store: &Etcd, name: &str, role: &str) {
    ask(store, "/etcdserverpb.Auth/UserAdd", UserAdd { name: name.into(), password: format!("{name}-secret") });
    ask(store, "/etcdserverpb.Auth/RoleAdd", Named { name: role.into() });
    ask(store, "/etcdserverpb.Auth/UserGrantRole", UserGrantRole { user: name.into(), role: role.into() });
}

/// Options with a user whose password lies in a file.
fn with_user(cluster: &Cluster, dir: &Path, name: &str, password: &str) -> EtcdOptions {
    let file = dir.join(format!("{name}-password"));
    fs::write(&file, format!("{password}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    EtcdOptions { user: Some(name.into()), password_file: Some(file), ..cluster.options() }
}

fn error_of(options: &EtcdOptions) -> String {
    Etcd::open(options, "/mesh/test", "writer").unwrap_err().to_string()
}

#[test]
fn users_are_asked_for_their_password_and_a_wrong_one_says_what_to_do() {
    let Some(mut cluster) = Cluster::start(1) else { return };
    let dir = tempfile::tempdir().unwrap();
    let open = open(&cluster, "first");
    user(&open, "root", "root");
    user(&open, "mesh", "mesh");
    user(&open, "other", "nothing");
    let permission = Permission { kind: 2, key: "/mesh/test/".into(), range_end: "/mesh/test0".into() };
    let grant = Grant { role: "mesh".into(), permission: Some(permission) };
    ask(&open, "/etcdserverpb.Auth/RoleGrantPermission", grant);
    // One who has a user may come before etcd asks for users.
    let mut store =
        Etcd::open(&with_user(&cluster, dir.path(), "mesh", "mesh-secret"), "/mesh/test", "writer").unwrap();
    commit(&mut store, 0, &[put(StoreTable::Nodes, "a", "1")]).unwrap();
    ask(&open, "/etcdserverpb.Auth/AuthEnable", Named::default());
    drop(open);

    let nobody = error_of(&cluster.options());
    assert!(nobody.contains("set `user` and `password_file`"), "{nobody}");
    let wrong = error_of(&with_user(&cluster, dir.path(), "mesh", "hunter2"));
    assert!(wrong.contains("correct `user` and the password") && !wrong.contains("hunter2"), "{wrong}");
    let poor = error_of(&with_user(&cluster, dir.path(), "other", "other-secret"));
    assert!(poor.contains("grant the user's role"), "{poor}");

    commit(&mut store, 1, &[put(StoreTable::Nodes, "b", "1")]).unwrap();
    assert!(!format!("{store:?} {:?}", with_user(&cluster, dir.path(), "mesh", "mesh-secret")).contains("mesh-secret"));
    // Tokens end with the member that gave them.
    cluster.kill(0);
    cluster.restart(0);
    commit(&mut store, 2, &[put(StoreTable::Nodes, "c", "1")]).unwrap();
    let told = store.follow().unwrap();
    eventually("the watch has a token again", || told.borrow().error.is_none());
    assert_eq!(store.load().unwrap().records.len(), 3);
}

/// Makes certificates with the openssl that is installed.
struct Authority(PathBuf);

impl Authority {
    fn new(dir: &Path, name: &str) -> Self {
        let own = Self(dir.join(name));
        let subject = format!("/CN={name}");
        let (key, cert) = (own.file("ca.key"), own.file("ca.pem"));
        fs::create_dir(&own.0).unwrap();
        own.openssl(&["req", "-x509", "-days", "2", "-subj", &subject, "-keyout", &key, "-out", &cert]);
        own
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Signs a certificate for 127.0.0.1, and returns the files of it and its key.
    fn sign(&self, name: &str) -> (String, String) {
        let (key, request, cert) = (self.file(&format!("{name}.key")), self.file("request"), self.file(name));
        let more = self.file("more");
        fs::write(&more, "subjectAltName = IP:127.0.0.1\n").unwrap();
        self.openssl(&["req", "-new", "-subj", &format!("/CN={name}"), "-keyout", &key, "-out", &request]);
        let (ca, ca_key) = (self.file("ca.pem"), self.file("ca.key"));
        let ran = Command::new("openssl")
            .args(["x509", "-req", "-days", "2", "-in", &request, "-CA", &ca, "-CAkey", &ca_key])
            .args(["-CAcreateserial", "-extfile", &more, "-out", &cert])
            .output();
        assert!(ran.unwrap().status.success());
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        (cert, key)
    }

    fn openssl(&self, arguments: &[&str]) {
        let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let ran = Command::new("openssl").args(arguments).args(new_key).current_dir(&self.0).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    }
}

#[test]
fn certificates_are_checked_both_ways_and_a_wrong_one_says_what_to_do() {
    if !is_there("openssl", "openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (good, other) = (Authority::new(dir.path(), "good"), Authority::new(dir.path(), "other"));
    let (cert, key) = good.sign("server");
    let ca = good.file("ca.pem");
    let arguments = ["--cert-file", &cert, "--key-file", &key, "--client-cert-auth", "--trusted-ca-file", &ca];
    let Some(cluster) = Cluster::start_with(1, true, &arguments.map(str::to_owned)) else { return };
    let with = |ca: &Authority, own: Option<&Authority>| {
        let own = own.map(|own| own.sign("client"));
        let (cert, key) = own.map(|(cert, key)| (cert.into(), key.into())).unzip();
        EtcdOptions { ca: Some(ca.file("ca.pem").into()), cert, key, ..cluster.options() }
    };
    let mut store = Etcd::open(&with(&good, Some(&good)), "/mesh/test", "writer").unwrap();
    commit(&mut store, 0, &[put(StoreTable::Nodes, "a", "1")]).unwrap();

    for (options, says) in [
        (with(&good, None), "set `cert` and `key`"),
        (with(&good, Some(&other)), "set `cert` and `key`"),
        (with(&other, Some(&good)), "set `ca`"),
        (EtcdOptions { tls: false, ..cluster.options() }, "write etcds://"),
        (EtcdOptions { ca: Some("/none".into()), ..cluster.options() }, "check the path"),
    ] {
        let error = error_of(&options);
        assert!(error.contains(says), "{error}");
    }
    let Some(plain) = Cluster::start(1) else { return };
    let error = error_of(&EtcdOptions { tls: true, ca: Some(ca.into()), ..plain.options() });
    assert!(error.contains("write etcd://"), "{error}");
}
