use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;

use super::{SeqListener, SeqPacket};

#[tokio::test]
async fn keeps_the_bounds_of_messages() {
    let (one, two) = SeqPacket::pair().unwrap();
    one.send(b"first", None).await.unwrap();
    one.send(b"second message", None).await.unwrap();
    let mut buffer = [0; 64];
    assert_eq!(two.recv(&mut buffer).await.unwrap().0, 5);
    let (length, descriptors) = two.recv(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..length], b"second message");
    assert!(descriptors.is_empty());
}

#[tokio::test]
async fn carries_a_descriptor_that_closes_on_exec() {
    let (one, two) = SeqPacket::pair().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"inside").unwrap();
    one.send(b"look", Some(file.as_fd())).await.unwrap();
    let (length, mut descriptors) = two.recv(&mut [0; 16]).await.unwrap();
    assert_eq!((length, descriptors.len()), (4, 1));
    let received = descriptors.pop().unwrap();
    let flags = nix::fcntl::fcntl(&received, nix::fcntl::FcntlArg::F_GETFD).unwrap();
    assert_ne!(flags & libc::FD_CLOEXEC, 0);
    let mut copy = std::fs::File::from(received);
    copy.rewind().unwrap();
    let mut text = String::new();
    copy.read_to_string(&mut text).unwrap();
    assert_eq!(text, "inside");
}

#[tokio::test]
async fn refuses_a_message_longer_than_the_buffer_and_leaks_nothing() {
    let (one, two) = SeqPacket::pair().unwrap();
    let (read_end, write_end) = nix::unistd::pipe().unwrap();
    one.send(&[7; 100], Some(write_end.as_fd())).await.unwrap();
    drop(write_end);
    let error = two.recv(&mut [0; 10]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    // The pipe's last write end was in the refused message: its reader sees the end.
    let mut rest = Vec::new();
    std::fs::File::from(read_end)
        .read_to_end(&mut rest)
        .unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn sees_the_end_of_the_peer() {
    let (one, two) = SeqPacket::pair().unwrap();
    drop(one);
    assert_eq!(two.recv(&mut [0; 10]).await.unwrap().0, 0);
    assert!(two.send(b"anyone", None).await.is_err());
}

#[tokio::test]
async fn listens_at_a_path_again_after_an_earlier_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    drop(SeqListener::bind(&path).unwrap());
    let listener = SeqListener::bind(&path).unwrap();
    let client = SeqPacket::connect(&path).unwrap();
    let server = listener.accept().await.unwrap();
    assert_eq!(server.peer_uid().unwrap(), nix::unistd::getuid().as_raw());
    client.send(b"hello", None).await.unwrap();
    assert_eq!(server.recv(&mut [0; 10]).await.unwrap().0, 5);
}

#[tokio::test]
async fn does_not_replace_a_file_that_is_no_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    std::fs::write(&path, "data").unwrap();
    assert!(SeqListener::bind(&path).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"data");
    assert!(SeqPacket::connect(folder.path().join("absent")).is_err());
}
