//! `init`: keys, state and the two files, each only if it does not exist.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use mesh_host::files::create;

use crate::base::state_files::{NAME, STORE};
use crate::base::words::PORT;
use crate::cli::args;
use crate::config::{self, Config, ConfigError};
use crate::core::earlier_mesh::{lost_identity, refuse_lost};
use crate::keys::identity::{self, KeyError};
use crate::store::{self, StoreError};

/// Says why `init` stopped.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The key or its directory.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The store, which cannot be made, or lost a mesh.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The coordinator.toml that exists already.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file cannot be written.
    #[error("cannot write {path}: {source}; run as root, or place the files elsewhere with --config")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes what is missing, and says in lines what it did and what comes next.
///
/// # Errors
/// `InitError` if something can be neither found nor made. What was made until then stays; the next `init`
/// continues from there.
pub fn init(words: &args::Init) -> Result<Vec<String>, InitError> {
    let path = words.config.clone().unwrap_or_else(|| config::CONFIG.into());
    let path = std::path::absolute(&path).unwrap_or(path);
    let mut said = Vec::new();
    if write_new(&path, &coordinator_toml(words, &path))? {
        said.push(format!("wrote {}", path.display()));
    } else {
        said.push(format!("kept {} as it is; options that it contradicts have no effect", path.display()));
    }
    let config = Config::load(&path)?;
    if config.etcd.is_none() {
        refuse_lost(&config)?;
        if let Some(lost) = lost_identity(&config).filter(|_| !words.new_identity) {
            return Err(lost.into());
        }
    }

    let (identity, fresh) = identity::load_or_create(&config.state_dir)?;
    let made = if fresh { "made" } else { "kept" };
    said.push(format!("{made} the identity key {} in {}", identity.public(), config.state_dir.display()));
    let store = config.state_dir.join(STORE);
    if config.etcd.is_none() {
        let made = if store.exists() { "kept" } else { "made" };
        drop(store::open_embedded(&store)?);
        said.push(format!("{made} the store {}", store.display()));
    }
    write_new(&config.state_dir.join(NAME), &format!("{}\n", words.name))?;
    let made = if write_new(&config.services, &services_toml(words))? { "wrote" } else { "kept" };
    said.push(format!("{made} {}", config.services.display()));

    let run = match &words.config {
        Some(_) => format!("mesh-coordinator run --config {}", path.display()),
        None => "systemctl enable --now mesh-coordinator (or: mesh-coordinator run)".into(),
    };
    let socket = if config.admin_socket == Path::new(config::ADMIN_SOCKET) {
        String::new()
    } else {
        format!(" --socket {}", config.admin_socket.display())
    };
    said.push("next:".into());
    said.push(format!("  1. start it:       {run}"));
    said.push(format!("  2. name your sites: see [[site]] in {}", config.services.display()));
    said.push(format!("  3. make a token:   mesh-coordinator{socket} token create --site SITE"));
    said.push("  4. on each node:   meshd join --token-file FILE".into());
    Ok(said)
}

/// Places everything beside a configuration that the operator placed, and leaves the defaults otherwise.
fn coordinator_toml(words: &args::Init, path: &Path) -> String {
    let dir = path.parent().unwrap_or_else(|| Path::new("/"));
    let own_place = words.config.is_some();
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let state_dir = words.state_dir.as_ref().map(absolute);
    let state_dir = state_dir.or_else(|| own_place.then(|| dir.join("state")));
    let services = words.services.as_ref().map(absolute);
    let services = services.or_else(|| own_place.then(|| dir.join("services.toml")));
    let socket = words.admin_socket.as_ref().map(absolute);
    let socket = socket.or_else(|| state_dir.as_ref().filter(|_| own_place).map(|dir| dir.join("admin.sock")));
    let listen = if words.listen.is_empty() {
        let port = words.public.first().and_then(|address| address.rsplit_once(':')?.1.parse().ok());
        vec![SocketAddr::from(([0u16; 8], port.unwrap_or(PORT)))]
    } else {
        words.listen.clone()
    };

    let mut text = String::from("# The coordinator. Every key is optional; see mesh-coordinator(8).\n");
    let mut key = |name: &str, value: Option<toml::Value>| {
        if let Some(value) = value {
            text.push_str(&format!("{name} = {value}\n"));
        }
    };
    let list = |words: Vec<String>| match <[String; 1]>::try_from(words) {
        Ok([word]) => toml::Value::from(word),
        Err(words) => toml::Value::from(words),
    };
    let path = |path: Option<PathBuf>| path.map(|path| toml::Value::from(path.display().to_string()));
    key("listen", Some(list(listen.iter().map(SocketAddr::to_string).collect())));
    key("public", Some(list(words.public.clone())));
    key("state_dir", path(state_dir));
    key("services", path(services));
    key("admin_socket", path(socket));
    key("metrics", words.metrics.map(|address| address.to_string().into()));
    text
}

fn services_toml(words: &args::Init) -> String {
    format!(
        r#"# Who belongs to the mesh, which names exist, and who may call whom. Saved changes are live at once;
# a file with errors changes nothing. Try one first: mesh-coordinator check FILE, mesh-coordinator plan FILE
#
# [[site]]
# name = "c1"                            # a cluster: its nodes may claim pod blocks within `pods`
# kind = "kubernetes"
# pods = ["10.8.0.0/14"]
#
# [[service]]
# name = "cart"                          # applications call cart:7070
# port = 7070
# backends = [{{ host = "vm-1" }}, {{ addr = "10.8.0.10", node = "c1-n1" }}]
#
# [[allow]]
# from = ["frontend"]
# to = ["cart"]
version = 1

[mesh]
name = "{}"

[[site]]
name = "dc"                              # a group of hosts; its name is yours to choose until the first one joins
"#,
        words.name
    )
}

/// Writes a file unless it exists; says whether it did. A half-written file never has the name.
fn write_new(path: &Path, text: &str) -> Result<bool, InitError> {
    let at = |source| InitError::Write { path: path.to_owned(), source };
    if fs::symlink_metadata(path).is_ok() {
        return Ok(false);
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(at)?;
    }
    create(path, text.as_bytes(), 0o666).map_err(at)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Cli, Verb};

    fn words(line: &[&str]) -> args::Init {
        let start = ["mesh-coordinator", "init", "--name", "boutique", "--public", "192.0.2.1:7701"];
        let cli = Cli::try_parse_from(start.iter().chain(line)).unwrap();
        let Verb::Init(words) = cli.verb else { panic!("not init") };
        words
    }

    #[test]
    fn everything_lies_beside_a_configuration_that_the_operator_placed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("conf/coordinator.toml");
        let said = init(&words(&["--config", path.to_str().unwrap(), "--metrics", "127.0.0.1:1"])).unwrap();

        let config = Config::load(&path).unwrap();
        let conf = dir.path().join("conf");
        assert_eq!(config.listen, ["[::]:7701".parse().unwrap()]);
        assert_eq!(config.public, ["192.0.2.1:7701"]);
        assert_eq!(config.state_dir, conf.join("state"));
        assert_eq!(config.services, conf.join("services.toml"));
        assert_eq!(config.admin_socket, conf.join("state/admin.sock"));
        assert_eq!(config.metrics, "127.0.0.1:1".parse().ok());
        assert!(said.iter().any(|line| line.contains("token create")), "{said:?}");
        let services = fs::read_to_string(&config.services).unwrap();
        let parsed = mesh_proto::services::parse(&services, "services.toml").unwrap();
        assert_eq!(parsed.services.mesh.name, "boutique".parse().ok());
        // README's next line but one makes a token for it.
        assert!(parsed.services.sites.iter().any(|site| site.name.as_str() == "dc"), "{services}");
    }

    #[test]
    fn a_second_init_overwrites_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("coordinator.toml");
        let line = ["--config", path.to_str().unwrap()];
        init(&words(&line)).unwrap();
        let services = dir.path().join("services.toml");
        fs::write(&services, "version = 1 # mine").unwrap();
        let key = identity::load(&dir.path().join("state")).unwrap().public();

        let said = init(&words(&line)).unwrap();

        assert_eq!(fs::read_to_string(&services).unwrap(), "version = 1 # mine");
        assert_eq!(identity::load(&dir.path().join("state")).unwrap().public(), key);
        assert_eq!(said.iter().filter(|line| line.starts_with("kept")).count(), 4, "{said:?}");
    }
}
