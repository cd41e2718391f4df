//! What the controller keeps between runs: the root and the key that signs tokens.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ambit_tls::authority::Root;
use rcgen::KeyPair;

/// Life of a root: ten years, as Istio's self-signed one.
const ROOT_LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);

/// The root certificate: what every proxy is given.
pub const ROOT_CERTIFICATE: &str = "root-cert.pem";
const ROOT_KEY: &str = "root-key.pem";
const TOKEN_KEY: &str = "token-key.pem";

/// Keys of one controller.
pub struct Keys {
    /// Signs certificates.
    pub root: Root,
    /// Signs tokens (PKCS#8 PEM).
    pub token_key: String,
    /// Checks tokens (PEM).
    pub token_public: String,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// Why the keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file system says no.
    #[error("{0}")]
    Io(PathBuf, #[source] io::Error),
    /// Others can read a private key.
    #[error("{0} can be read by others (mode {1:03o}); it must be 600")]
    Exposed(PathBuf, u32),
    /// A file does not hold what it should.
    #[error("{0}: {1}")]
    Content(PathBuf, String),
    /// Only one of certificate and key is there; making new ones would cut off everyone who trusts
    /// the old.
    #[error("{0} is there without {1}")]
    Half(PathBuf, PathBuf),
    /// Us.
    #[error("keys cannot be made: {0}")]
    Bug(String),
}

impl Keys {
    /// Reads the keys in `state`, making those that are not there yet.
    ///
    /// # Errors
    /// See [`KeyError`]. Nothing that is there is ever replaced.
    pub fn open(state: &Path, trust_domain: &str, now: SystemTime) -> Result<Self, KeyError> {
        fs::create_dir_all(state).map_err(|error| KeyError::Io(state.to_owned(), error))?;
        let root = open_root(state, trust_domain, now)?;
        let (token_key, token_public) = open_token_key(state)?;
        Ok(Self {
            root,
            token_key,
            token_public,
        })
    }
}

fn open_root(state: &Path, trust_domain: &str, now: SystemTime) -> Result<Root, KeyError> {
    let (certificate, key) = (state.join(ROOT_CERTIFICATE), state.join(ROOT_KEY));
    match (certificate.exists(), key.exists()) {
        (true, true) => {
            let content = |error: ambit_tls::TlsError| {
                KeyError::Content(certificate.clone(), error.to_string())
            };
            Root::from_pem(&read(&certificate)?, &read_private(&key)?).map_err(content)
        }
        (true, false) => Err(KeyError::Half(certificate, key)),
        // The certificate is written last, so a key alone is what a broken first start left.
        (false, _) => {
            let root = Root::generate(trust_domain, now, ROOT_LIFE)
                .map_err(|error| KeyError::Bug(error.to_string()))?;
            write(&key, &root.key_pem(), 0o600)?;
            write(&certificate, &root.certificate_pem(), 0o644)?;
            Ok(root)
        }
    }
}

fn open_token_key(state: &Path) -> Result<(String, String), KeyError> {
    let file = state.join(TOKEN_KEY);
    if !file.exists() {
        let pair = KeyPair::generate().map_err(|error| KeyError::Bug(error.to_string()))?;
        write(&file, &pair.serialize_pem(), 0o600)?;
    }
    let pem = read_private(&file)?;
    let pair = KeyPair::from_pem(&pem)
        .map_err(|error| KeyError::Content(file.clone(), error.to_string()))?;
    Ok((pem, pair.public_key_pem()))
}

fn read(file: &Path) -> Result<String, KeyError> {
    fs::read_to_string(file).map_err(|error| KeyError::Io(file.to_owned(), error))
}

fn read_private(file: &Path) -> Result<String, KeyError> {
    let metadata = fs::metadata(file).map_err(|error| KeyError::Io(file.to_owned(), error))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed(file.to_owned(), mode));
    }
    read(file)
}

/// Writes a file whole or not at all, with this mode from its first byte on.
fn write(file: &Path, text: &str, mode: u32) -> Result<(), KeyError> {
    let failed = |error| KeyError::Io(file.to_owned(), error);
    let temporary = file.with_extension(format!("new{}", std::process::id()));
    let mut options = OpenOptions::new();
    let mut open = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary);
    if let Ok(open) = &mut open {
        open.set_permissions(Permissions::from_mode(mode))
            .map_err(failed)?;
        open.write_all(text.as_bytes())
            .and_then(|()| open.sync_all())
            .map_err(failed)?;
    }
    open.map_err(failed)?;
    fs::rename(&temporary, file).map_err(failed)
}

#[cfg(test)]
mod tests;
