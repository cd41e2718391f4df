//! Root certificates that prove the control plane.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::ControlError;

/// Largest file read. A system trust store has about 250 KiB.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Where distributions keep their trust store: Debian, Fedora, Alpine.
const SYSTEM: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Where root certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// A PEM file, read again at each connection attempt.
    File(PathBuf),
    /// PEM text.
    Pem(String),
    /// The trust store of the operating system.
    System,
}

impl Roots {
    /// The meaning of a `*_ROOT_CA` setting: `SYSTEM`, PEM text, or a path.
    pub fn from_setting(setting: &str) -> Self {
        match setting {
            "SYSTEM" => Self::System,
            text if text.contains("-----BEGIN ") => Self::Pem(text.to_owned()),
            path => Self::File(path.into()),
        }
    }

    /// The certificates now, as PEM.
    pub(crate) fn read(&self) -> Result<String, ControlError> {
        match self {
            Self::Pem(text) => Ok(text.clone()),
            Self::File(path) => read_text(path, MAX_FILE),
            Self::System => {
                let found = SYSTEM.iter().map(Path::new).find(|path| path.exists());
                read_text(found.ok_or(ControlError::NoSystemRoots)?, MAX_FILE)
            }
        }
    }
}

/// A whole text file of at most `limit` bytes.
///
/// Blocks, which is right for the control runtime: these are small files on a local (mostly
/// memory) file system, and a thread hop would cost more than the read.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String, ControlError> {
    let read = || {
        let mut text = String::new();
        let length = File::open(path)?
            .take(limit + 1)
            .read_to_string(&mut text)?;
        if u64::try_from(length).is_ok_and(|length| length <= limit) {
            Ok(text)
        } else {
            Err(io::Error::from(io::ErrorKind::FileTooLarge))
        }
    };
    read().map_err(|source| ControlError::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_the_system_store_text_or_a_path() {
        let pem = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
        assert_eq!(Roots::from_setting("SYSTEM"), Roots::System);
        assert_eq!(Roots::from_setting(pem), Roots::Pem(pem.to_owned()));
        let path = "./var/run/secrets/istio/root-cert.pem";
        assert_eq!(Roots::from_setting(path), Roots::File(path.into()));
    }

    #[test]
    fn a_file_is_read_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.pem");
        let roots = Roots::File(path.clone());
        assert!(matches!(roots.read(), Err(ControlError::File { .. })));
        std::fs::write(&path, "one").unwrap();
        assert_eq!(roots.read().unwrap(), "one");
        std::fs::write(&path, "two").unwrap();
        assert_eq!(roots.read().unwrap(), "two");
    }

    #[test]
    fn a_file_that_is_too_large_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big");
        std::fs::write(&path, "12345").unwrap();
        assert!(read_text(&path, 4).is_err());
        assert_eq!(read_text(&path, 5).unwrap(), "12345");
    }
}
