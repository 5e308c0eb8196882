//! One small document over HTTPS: no redirects, no proxies, bounded in size and time.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::{Request, StatusCode, Uri};
use mesh_host::client::exchange;
use mesh_proto::trust::jwt::MAX_JWKS;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How long everything may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where systems keep the certificates that they trust.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Fetches a document of at most `MAX_JWKS` bytes; `ca` replaces the certificates that the system trusts.
pub(crate) async fn get(url: &str, ca: Option<&Path>) -> Result<Vec<u8>, String> {
    let fetched = timeout(PATIENCE, fetch(url, ca)).await;
    let fetched = fetched.unwrap_or_else(|_| Err(format!("nothing came within {} s", PATIENCE.as_secs())));
    fetched.map_err(|error| format!("cannot fetch {url}: {error}"))
}

async fn fetch(url: &str, ca: Option<&Path>) -> Result<Vec<u8>, String> {
    let uri: Uri = url.parse().map_err(|error| format!("this is no URL: {error}"))?;
    let host = uri.host().ok_or("the URL names no host")?.trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(443);
    let config = config(ca)?;
    let stream = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| error.to_string())?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or(host, |authority| authority.as_str());
    let request = Request::get(path).header("host", authority).header("accept", "application/json");
    let request = request.body(Full::default()).map_err(|error| error.to_string())?;
    match exchange(stream, request, MAX_JWKS).await.map_err(|error| error.to_string())? {
        (StatusCode::OK, body) => Ok(body.to_vec()),
        (status, _) => Err(format!("the answer is {status}")),
    }
}

fn config(ca: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let roots = match ca {
        Some(path) => certificates(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?,
        None => {
            let found = SYSTEM.iter().find_map(|path| certificates(Path::new(path)).ok());
            found.ok_or(
                "this system has no certificates to trust; install ca-certificates, or set `ca` to a file of them",
            )?
        }
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let config = builder.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let found = CertificateDer::pem_file_iter(path).map_err(io::Error::other)?;
    let (taken, _) = roots.add_parsable_certificates(found.flatten());
    if taken == 0 {
        return Err(io::Error::other("there is no certificate in it"));
    }
    Ok(roots)
}
