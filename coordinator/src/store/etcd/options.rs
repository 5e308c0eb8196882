//! Where etcd is and how one speaks to it: `store = "etcd://…"` and the `[etcd]` table of coordinator.toml.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use zeroize::Zeroizing;

use crate::base::words::public;
use crate::store::StoreError;

/// The port of etcd where none is given.
const PORT: u16 = 2379;
/// Most members that are named.
const MAX_ENDPOINTS: usize = 16;
/// Where systems keep the authorities that they trust.
const SYSTEM_ROOTS: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
/// Largest file of the `[etcd]` table that is read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Where etcd is and how one speaks to it. It holds the names of files, never what is in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EtcdOptions {
    /// The members, as `host:port`.
    pub endpoints: Vec<String>,
    /// Whether to speak TLS (`etcds://`).
    pub tls: bool,
    /// What all keys begin with; `/mesh/` and the mesh's name if `None`.
    pub prefix: Option<String>,
    /// The file of the authority that signed etcd's certificates; those that the system trusts if `None`.
    pub ca: Option<PathBuf>,
    /// The file of our own certificate.
    pub cert: Option<PathBuf>,
    /// The file of its key.
    pub key: Option<PathBuf>,
    /// Our user.
    pub user: Option<String>,
    /// The file of its password.
    pub password_file: Option<PathBuf>,
}

/// A user and its password.
pub(super) struct User {
    pub(super) name: String,
    pub(super) password: Zeroizing<String>,
}

impl EtcdOptions {
    /// Reads `etcd://HOST:PORT,…` or `etcds://…`, with or without `/PREFIX` behind.
    ///
    /// # Errors
    /// A sentence that says what such a word looks like.
    pub fn parse(word: &str) -> Result<Self, String> {
        let example = "write \"etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379\", or etcds:// for TLS";
        let plain = word.strip_prefix("etcd://").map(|rest| (rest, false));
        let Some((rest, tls)) = plain.or_else(|| word.strip_prefix("etcds://").map(|rest| (rest, true))) else {
            return Err(format!("`{word}` does not name an etcd; {example}"));
        };
        // What stands before the @ may be a password: it is not repeated.
        if rest.contains('@') {
            return Err("a user does not belong here; write `user` and `password_file` under [etcd]".into());
        }
        let (hosts, prefix) = rest.split_once('/').map_or((rest, ""), |(hosts, prefix)| (hosts, prefix));
        let endpoints: Result<Vec<_>, _> = hosts.split(',').map(endpoint).collect();
        let endpoints = endpoints.map_err(|bad| format!("`{bad}` is no member of an etcd; {example}"))?;
        if endpoints.len() > MAX_ENDPOINTS {
            return Err(format!("name at most {MAX_ENDPOINTS} members of etcd"));
        }
        let prefix = prefix.trim_matches('/');
        let prefix = (!prefix.is_empty()).then(|| format!("/{prefix}"));
        Ok(Self { endpoints, tls, prefix, ..Self::default() })
    }

    /// Says what contradicts itself, as a sentence.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        let files = [&self.ca, &self.cert, &self.key];
        if !self.tls && files.iter().any(|file| file.is_some()) {
            return Some("`ca`, `cert` and `key` are for TLS; write store = \"etcds://…\"");
        }
        if self.cert.is_some() != self.key.is_some() {
            return Some("`cert` and `key` belong together; write both or neither");
        }
        if self.user.is_some() != self.password_file.is_some() {
            return Some("`user` and `password_file` belong together; write both or neither");
        }
        None
    }

    /// Returns the store as people are told of it: no file, no user.
    pub fn shown(&self, prefix: &str) -> String {
        let scheme = if self.tls { "etcds" } else { "etcd" };
        format!("{scheme}://{}{prefix}", self.endpoints.join(","))
    }

    /// Reads the files that TLS needs.
    pub(super) fn tls(&self) -> Result<Option<ClientTlsConfig>, StoreError> {
        if !self.tls {
            return Ok(None);
        }
        let mut config = ClientTlsConfig::new();
        let system = || SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.exists());
        let Some(ca) = self.ca.clone().or_else(system) else {
            let detail = "this machine has no list of trusted authorities".into();
            return Err(unusable("[etcd] ca", detail, "set `ca` to the authority that signed etcd's certificates"));
        };
        config = config.ca_certificate(Certificate::from_pem(&*read(&ca)?));
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            config = config.identity(Identity::from_pem(&*read(cert)?, &*secret(key)?));
        }
        Ok(Some(config))
    }

    /// Reads the user's password.
    pub(super) fn user(&self) -> Result<Option<User>, StoreError> {
        let (Some(name), Some(file)) = (&self.user, &self.password_file) else { return Ok(None) };
        let bytes = secret(file)?;
        let Ok(text) = std::str::from_utf8(&bytes) else {
            return Err(unusable(
                &shown(file),
                "it is not text".into(),
                "write the password into it, and nothing else",
            ));
        };
        let password = Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned());
        Ok(Some(User { name: name.clone(), password }))
    }
}

/// Completes and checks one member's address.
fn endpoint(word: &str) -> Result<String, &str> {
    let with_port = format!("{word}:{PORT}");
    let has_port = word.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    let whole = if has_port { word } else { &with_port };
    public(whole).map_err(|_| word)
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    let failed = |source: std::io::Error| {
        unusable(&shown(path), source.to_string(), "check the path under [etcd], and that our user may read it")
    };
    if fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
        return Err(unusable(&shown(path), "it is too large".into(), "check the path under [etcd]"));
    }
    fs::read(path).map(Zeroizing::new).map_err(failed)
}

/// Reads a file that nobody but its owner may read.
fn secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    let mode = fs::metadata(path).map_or(0, |found| found.mode());
    if mode & 0o077 != 0 {
        return Err(unusable(&shown(path), "others can read it".into(), "run chmod 600 on it"));
    }
    read(path)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn unusable(what: &str, detail: String, advice: &'static str) -> StoreError {
    StoreError::Etcd { doing: "use", at: what.to_owned(), detail, advice: advice.into() }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn members_ports_and_the_prefix_are_read() {
        let read = EtcdOptions::parse("etcd://10.0.0.1,etcd-2:1234,[2001:db8::1]:9/mesh/a/").unwrap();
        assert_eq!(read.endpoints, ["10.0.0.1:2379", "etcd-2:1234", "[2001:db8::1]:9"]);
        assert_eq!((read.tls, read.prefix.as_deref()), (false, Some("/mesh/a")));
        assert_eq!(read.shown("/mesh/a"), "etcd://10.0.0.1:2379,etcd-2:1234,[2001:db8::1]:9/mesh/a");
        let read = EtcdOptions::parse("etcds://[2001:db8::1]").unwrap();
        assert_eq!((read.endpoints.as_slice(), read.tls), (["[2001:db8::1]:2379".to_owned()].as_slice(), true));
        for bad in ["etcd://", "etcd://a b", "etcd://a,,b", "etcd://a:0", "http://a"] {
            assert!(EtcdOptions::parse(bad).unwrap_err().contains("etcds://"), "{bad}");
        }
    }

    #[test]
    fn a_password_in_the_address_is_refused_and_not_repeated() {
        let error = EtcdOptions::parse("etcd://root:hunter2@10.0.0.1").unwrap_err();
        assert!(error.contains("password_file") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_password_that_others_can_read_is_refused_and_one_line_end_is_no_part_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        fs::write(&file, "hunter2\n").unwrap();
        let options =
            EtcdOptions { user: Some("mesh".into()), password_file: Some(file.clone()), ..EtcdOptions::default() };
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let error = options.user().err().unwrap().to_string();
        assert!(error.contains("chmod 600") && !error.contains("hunter2"), "{error}");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(*options.user().unwrap().unwrap().password, "hunter2");
    }
}
