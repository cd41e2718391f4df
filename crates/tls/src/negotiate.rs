//! The handshake's bytes: rustls decides, and the buffers are ours.

use std::io;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, ExtractedSecrets, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::TlsError;
use crate::handshake::blame;
use crate::stream::{Keys, TlsStream};

/// Bytes a peer may send before it is verified: twice the longest chain that is looked at, and what
/// else a handshake holds.
const MAX_HANDSHAKE: usize = 96 * 1024;

/// One read during a handshake: a whole flight of an ordinary one.
const READ: usize = 8 * 1024;

/// A finished handshake.
pub(crate) struct Negotiated<T> {
    pub(crate) stream: TlsStream<T>,
    /// What the peer presented: its own certificate first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// How the keys were agreed on.
    #[cfg(test)]
    pub(crate) group: Option<rustls::NamedGroup>,
    pub(crate) protocol: Option<Vec<u8>>,
}

/// Opens a connection.
pub(crate) async fn client<T>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    transport: T,
) -> Result<Negotiated<T>, TlsError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let session = UnbufferedClientConnection::new(config, name).map_err(|error| blame(&error))?;
    negotiate(session, transport).await
}

/// Accepts a connection.
pub(crate) async fn server<T>(
    config: Arc<ServerConfig>,
    transport: T,
) -> Result<Negotiated<T>, TlsError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let session = UnbufferedServerConnection::new(config).map_err(|error| blame(&error))?;
    negotiate(session, transport).await
}

/// The two kinds of session, as far as a handshake tells them apart.
trait Session {
    fn step(&mut self, buffers: &mut Buffers) -> Result<Step, rustls::Error>;
    fn common(&self) -> &CommonState;
    fn into_keys(self) -> Result<(ExtractedSecrets, Keys), rustls::Error>;
}

impl Session for UnbufferedClientConnection {
    fn step(&mut self, buffers: &mut Buffers) -> Result<Step, rustls::Error> {
        let mut input = std::mem::take(&mut buffers.input);
        let result = step(self.process_tls_records(&mut input), buffers);
        buffers.put_back(input);
        result
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Keys), rustls::Error> {
        self.dangerous_into_kernel_connection()
            .map(|(secrets, keys)| (secrets, Keys::Client(Box::new(keys))))
    }
}

impl Session for UnbufferedServerConnection {
    fn step(&mut self, buffers: &mut Buffers) -> Result<Step, rustls::Error> {
        let mut input = std::mem::take(&mut buffers.input);
        let result = step(self.process_tls_records(&mut input), buffers);
        buffers.put_back(input);
        result
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Keys), rustls::Error> {
        self.dangerous_into_kernel_connection()
            .map(|(secrets, keys)| (secrets, Keys::Server(Box::new(keys))))
    }
}

#[derive(Default)]
struct Buffers {
    /// Read and not used up.
    input: Vec<u8>,
    /// To be written.
    output: Vec<u8>,
    /// Application data that came right behind the peer's last flight.
    early: Vec<u8>,
    discard: usize,
}

impl Buffers {
    fn put_back(&mut self, mut input: Vec<u8>) {
        input.drain(..self.discard.min(input.len()));
        self.discard = 0;
        self.input = input;
    }
}

enum Step {
    Again,
    Read,
    Finished,
    Closed,
}

async fn negotiate<S, T>(mut session: S, mut transport: T) -> Result<Negotiated<T>, TlsError>
where
    S: Session,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffers = Buffers::default();
    if let Err(error) = flights(&mut session, &mut transport, &mut buffers).await {
        if let Failure::Tls(_) = error {
            // Tells the peer why; it may be gone, and then there is nobody to tell.
            let _ = part(&mut session, &mut transport, &mut buffers).await;
        }
        return Err(error.into());
    }
    let chain = session.common().peer_certificates().unwrap_or_default();
    let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
    #[cfg(test)]
    let group = session.common().negotiated_key_exchange_group();
    let protocol = session.common().alpn_protocol().map(<[u8]>::to_vec);
    let (secrets, keys) = session.into_keys().map_err(|error| blame(&error))?;
    let stream = TlsStream::new(transport, secrets, keys, &buffers.early, &buffers.input)?;
    Ok(Negotiated {
        stream,
        chain,
        #[cfg(test)]
        group: group.map(|group| group.name()),
        protocol,
    })
}

enum Failure {
    Tls(rustls::Error),
    Io(io::Error),
    TooLarge,
}

impl From<Failure> for TlsError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Tls(error) => blame(&error),
            Failure::Io(error) => Self::Io(error),
            Failure::TooLarge => Self::HandshakeTooLarge(MAX_HANDSHAKE),
        }
    }
}

async fn flights<S, T>(
    session: &mut S,
    transport: &mut T,
    buffers: &mut Buffers,
) -> Result<(), Failure>
where
    S: Session,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut received = 0;
    loop {
        match session.step(buffers).map_err(Failure::Tls)? {
            Step::Again => continue,
            Step::Closed => return Err(Failure::Io(io::ErrorKind::UnexpectedEof.into())),
            Step::Finished => return write(transport, buffers).await,
            Step::Read => write(transport, buffers).await?,
        }
        if received >= MAX_HANDSHAKE {
            return Err(Failure::TooLarge);
        }
        buffers.input.reserve(READ);
        let read = transport
            .read_buf(&mut buffers.input)
            .await
            .map_err(Failure::Io)?;
        if read == 0 {
            return Err(Failure::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        received += read;
    }
}

async fn write<T: AsyncWrite + Unpin>(
    transport: &mut T,
    buffers: &mut Buffers,
) -> Result<(), Failure> {
    transport
        .write_all(&buffers.output)
        .await
        .map_err(Failure::Io)?;
    buffers.output.clear();
    transport.flush().await.map_err(Failure::Io)
}

/// Sends the alert that a failed step left behind.
async fn part<S, T>(
    session: &mut S,
    transport: &mut T,
    buffers: &mut Buffers,
) -> Result<(), Failure>
where
    S: Session,
    T: AsyncWrite + Unpin,
{
    // Once nothing waits to be said, another step would look at the bad input again.
    while session.common().wants_write() && matches!(session.step(buffers), Ok(Step::Again)) {}
    write(transport, buffers).await?;
    transport.shutdown().await.map_err(Failure::Io)
}

fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    buffers: &mut Buffers,
) -> Result<Step, rustls::Error> {
    buffers.discard = status.discard;
    match status.state? {
        ConnectionState::EncodeTlsData(mut encode) => {
            append(&mut encode, &mut buffers.output)?;
            Ok(Step::Again)
        }
        // Written before the next read, and before the end.
        ConnectionState::TransmitTlsData(transmit) => {
            transmit.done();
            Ok(Step::Again)
        }
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                buffers.discard += record.discard;
                buffers.early.extend_from_slice(record.payload);
            }
            Ok(Step::Again)
        }
        ConnectionState::BlockedHandshake => Ok(Step::Read),
        ConnectionState::WriteTraffic(_) => Ok(Step::Finished),
        ConnectionState::PeerClosed | ConnectionState::Closed => Ok(Step::Closed),
        _ => Err(rustls::Error::General(
            "early data was never offered".into(),
        )),
    }
}

fn append<Data>(
    encode: &mut EncodeTlsData<'_, Data>,
    output: &mut Vec<u8>,
) -> Result<(), rustls::Error> {
    let start = output.len();
    let needed = match encode.encode(&mut []) {
        Ok(_) => return Ok(()),
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        Err(EncodeError::AlreadyEncoded) => return Ok(()),
    };
    output.resize(start + needed, 0);
    match encode.encode(output.get_mut(start..).unwrap_or_default()) {
        Ok(_) => Ok(()),
        Err(error) => Err(rustls::Error::General(error.to_string())),
    }
}

/// So that the two kinds of keys can be named without naming rustls' types elsewhere.
pub(crate) type ClientKeys = rustls::kernel::KernelConnection<ClientConnectionData>;
/// As [`ClientKeys`].
pub(crate) type ServerKeys = rustls::kernel::KernelConnection<ServerConnectionData>;
