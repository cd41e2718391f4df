use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::SystemTime;

use super::{KeyError, Keys, ROOT_CERTIFICATE, ROOT_KEY, TOKEN_KEY};

fn open(state: &Path) -> Result<Keys, KeyError> {
    Keys::open(state, "cluster.local", SystemTime::now())
}

fn mode(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o777
}

#[test]
fn keys_are_made_once_and_kept_to_their_owner() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let first = open(&state).unwrap();
    assert_eq!(mode(&state.join(ROOT_KEY)), 0o600);
    assert_eq!(mode(&state.join(TOKEN_KEY)), 0o600);
    assert_eq!(mode(&state.join(ROOT_CERTIFICATE)), 0o644);
    let second = open(&state).unwrap();
    assert_eq!(first.root.certificate_pem(), second.root.certificate_pem());
    assert_eq!(first.token_key, second.token_key);
    assert!(first.token_public.contains("PUBLIC KEY"));
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).unwrap();
    let key = folder.path().join(ROOT_KEY);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(open(folder.path()), Err(KeyError::Exposed(file, 0o640)) if file == key));
}

#[test]
fn a_root_without_its_key_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).unwrap();
    let certificate = fs::read(folder.path().join(ROOT_CERTIFICATE)).unwrap();
    fs::remove_file(folder.path().join(ROOT_KEY)).unwrap();
    assert!(matches!(open(folder.path()), Err(KeyError::Half(..))));
    assert_eq!(
        fs::read(folder.path().join(ROOT_CERTIFICATE)).unwrap(),
        certificate
    );
}

#[test]
fn a_file_that_is_no_key_is_named() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).unwrap();
    let key = folder.path().join(TOKEN_KEY);
    fs::write(&key, "nonsense").unwrap();
    assert!(matches!(open(folder.path()), Err(KeyError::Content(file, _)) if file == key));
}
