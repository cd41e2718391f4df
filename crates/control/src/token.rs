//! The token that proves us to the control plane.

use std::path::{Path, PathBuf};

use http::HeaderValue;

use crate::ControlError;
use crate::roots::read_text;

/// Largest token. A Kubernetes service-account token has about 1 KiB.
const MAX_TOKEN: u64 = 64 * 1024;

/// Where the token comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// No token is sent.
    None,
    /// A file, read again for each call: the kubelet replaces it before it expires.
    File(PathBuf),
    /// The token itself.
    Literal(String),
}

impl std::fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Literal(_) => f.write_str("Literal(..)"),
        }
    }
}

impl TokenSource {
    /// The meaning of `AUTH_TOKEN`: a path if it has a slash (no token does) or such a file exists
    /// now, else the token itself. A file that appears later is thus found. Empty means no token.
    pub fn from_setting(setting: &str) -> Self {
        if setting.is_empty() {
            Self::None
        } else if setting.contains('/') || Path::new(setting).exists() {
            Self::File(setting.into())
        } else {
            Self::Literal(setting.to_owned())
        }
    }

    /// The value of the `authorization` header now.
    pub(crate) fn header(&self) -> Result<Option<HeaderValue>, ControlError> {
        match self {
            Self::None => Ok(None),
            Self::File(path) => {
                let token = read_text(path, MAX_TOKEN)?;
                bearer(&token)
                    .ok_or_else(|| ControlError::Token(path.clone()))
                    .map(Some)
            }
            Self::Literal(token) => {
                let wrong = || ControlError::Token("the configured text".into());
                bearer(token).ok_or_else(wrong).map(Some)
            }
        }
    }
}

/// `Bearer <token>`, without the line end that files have.
fn bearer(token: &str) -> Option<HeaderValue> {
    let token = token.trim();
    if token.is_empty() {
        return None;
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_each_time_and_trimmed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "one\n").unwrap();
        let source = TokenSource::from_setting(path.to_str().unwrap());
        assert_eq!(source, TokenSource::File(path.clone()));
        assert_eq!(source.header().unwrap().unwrap(), "Bearer one");
        std::fs::write(&path, "two").unwrap();
        let header = source.header().unwrap().unwrap();
        assert_eq!(header, "Bearer two");
        assert!(header.is_sensitive());
        for useless in ["", " \n", "a\nb"] {
            std::fs::write(&path, useless).unwrap();
            assert!(
                matches!(source.header(), Err(ControlError::Token(_))),
                "{useless:?}"
            );
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(source.header(), Err(ControlError::File { .. })));
    }

    #[test]
    fn a_literal_never_shows() {
        let source = TokenSource::from_setting("secret-token");
        assert_eq!(source, TokenSource::Literal("secret-token".to_owned()));
        assert!(!format!("{source:?}").contains("secret"));
        assert_eq!(TokenSource::from_setting(""), TokenSource::None);
        let later = "./var/run/secrets/tokens/not-there-yet";
        assert_eq!(
            TokenSource::from_setting(later),
            TokenSource::File(later.into())
        );
        assert!(TokenSource::None.header().unwrap().is_none());
    }
}
