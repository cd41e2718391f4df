//! Authenticated encryption of records (RFC 8446 5.2), by whichever library is quickest on this processor.
//!
//! aws-lc is the crypto provider, and does this too unless the processor can encrypt two blocks in one instruction but has no
//! AVX-512 (AMD before Zen 4, Intel without it): for those ring has a form of AES-GCM that aws-lc lacks. Measured on such a
//! processor it takes half the time, for long records and for short ones.

use aws_lc_rs::aead as aws_lc;
#[cfg(target_arch = "x86_64")]
use ring::aead as ring;

/// Bytes of an authentication tag of AES-GCM.
pub(crate) const TAG: usize = 16;

/// What both libraries say of a failure: nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed;

/// The suites of the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Aes128Gcm,
    Aes256Gcm,
}

/// Who does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Library {
    AwsLc,
    #[cfg(target_arch = "x86_64")]
    Ring,
}

impl Library {
    /// The quickest here.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn best() -> Self {
        // Both look again for what they need themselves: a wrong choice here would be slow, not wrong.
        let wide = is_x86_feature_detected!("vaes") && is_x86_feature_detected!("vpclmulqdq");
        if wide && is_x86_feature_detected!("avx2") && !is_x86_feature_detected!("avx512f") {
            Self::Ring
        } else {
            Self::AwsLc
        }
    }

    /// The quickest here.
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn best() -> Self {
        Self::AwsLc
    }
}

/// A key of one direction.
pub(crate) enum Key {
    AwsLc(aws_lc::LessSafeKey),
    #[cfg(target_arch = "x86_64")]
    Ring(Box<ring::LessSafeKey>),
}

impl Key {
    /// Fails if `key` has not the algorithm's length.
    pub(crate) fn new(library: Library, algorithm: Algorithm, key: &[u8]) -> Result<Self, Failed> {
        match library {
            Library::AwsLc => {
                let algorithm = match algorithm {
                    Algorithm::Aes128Gcm => &aws_lc::AES_128_GCM,
                    Algorithm::Aes256Gcm => &aws_lc::AES_256_GCM,
                };
                let key = aws_lc::UnboundKey::new(algorithm, key).map_err(|_| Failed)?;
                Ok(Self::AwsLc(aws_lc::LessSafeKey::new(key)))
            }
            #[cfg(target_arch = "x86_64")]
            Library::Ring => {
                let algorithm = match algorithm {
                    Algorithm::Aes128Gcm => &ring::AES_128_GCM,
                    Algorithm::Aes256Gcm => &ring::AES_256_GCM,
                };
                let key = ring::UnboundKey::new(algorithm, key).map_err(|_| Failed)?;
                Ok(Self::Ring(Box::new(ring::LessSafeKey::new(key))))
            }
        }
    }

    /// Encrypts `body` where it is. A nonce must never come twice.
    pub(crate) fn seal(
        &self,
        nonce: [u8; 12],
        header: [u8; 5],
        body: &mut [u8],
    ) -> Result<[u8; TAG], Failed> {
        let mut bytes = [0; TAG];
        match self {
            Self::AwsLc(key) => {
                let nonce = aws_lc::Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, aws_lc::Aad::from(header), body);
                copy(&mut bytes, tag.map_err(|_| Failed)?.as_ref())?;
            }
            #[cfg(target_arch = "x86_64")]
            Self::Ring(key) => {
                let nonce = ring::Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, ring::Aad::from(header), body);
                copy(&mut bytes, tag.map_err(|_| Failed)?.as_ref())?;
            }
        }
        Ok(bytes)
    }

    /// Decrypts `sealed`, whose last bytes are the tag, where it is. Answers the plaintext, if it is what was sealed.
    pub(crate) fn open<'a>(
        &self,
        nonce: [u8; 12],
        header: [u8; 5],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], Failed> {
        match self {
            Self::AwsLc(key) => {
                let nonce = aws_lc::Nonce::assume_unique_for_key(nonce);
                let opened = key.open_in_place(nonce, aws_lc::Aad::from(header), sealed);
                opened.map_err(|_| Failed)
            }
            #[cfg(target_arch = "x86_64")]
            Self::Ring(key) => {
                let nonce = ring::Nonce::assume_unique_for_key(nonce);
                let opened = key.open_in_place(nonce, ring::Aad::from(header), sealed);
                opened.map_err(|_| Failed)
            }
        }
    }
}

fn copy(to: &mut [u8; TAG], from: &[u8]) -> Result<(), Failed> {
    *to = from.try_into().map_err(|_| Failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::{Algorithm, Failed, Key, Library};

    #[cfg(target_arch = "x86_64")]
    const LIBRARIES: [Library; 2] = [Library::AwsLc, Library::Ring];
    #[cfg(not(target_arch = "x86_64"))]
    const LIBRARIES: [Library; 1] = [Library::AwsLc];

    /// The key's length of each.
    const ALGORITHMS: [(Algorithm, usize); 2] =
        [(Algorithm::Aes128Gcm, 16), (Algorithm::Aes256Gcm, 32)];

    proptest! {
        #[test]
        fn what_one_library_seals_the_other_opens(
            secret in any::<[u8; 32]>(),
            nonce in any::<[u8; 12]>(),
            header in any::<[u8; 5]>(),
            body in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            for (algorithm, length) in ALGORITHMS {
                let keys = LIBRARIES.map(|library| Key::new(library, algorithm, &secret[..length]).unwrap());
                for sealing in &keys {
                    let mut sealed = body.clone();
                    let tag = sealing.seal(nonce, header, &mut sealed).unwrap();
                    sealed.extend(tag);
                    for opening in &keys {
                        assert_eq!(opening.open(nonce, header, &mut sealed.clone()).unwrap(), body);
                    }
                }
            }
        }
    }

    #[test]
    fn neither_opens_what_was_changed() {
        for (algorithm, length) in ALGORITHMS {
            for library in LIBRARIES {
                let key = Key::new(library, algorithm, &vec![7; length]).unwrap();
                let mut sealed = b"some bytes".to_vec();
                let tag = key.seal([1; 12], [2; 5], &mut sealed).unwrap();
                sealed.extend(tag);
                let open = |nonce, header, flip: Option<usize>| {
                    let mut sealed = sealed.clone();
                    if let Some(index) = flip {
                        sealed[index] ^= 1;
                    }
                    key.open(nonce, header, &mut sealed)
                        .map(|opened| opened.to_vec())
                };
                assert_eq!(open([1; 12], [2; 5], None).unwrap(), b"some bytes");
                assert_eq!(open([3; 12], [2; 5], None), Err(Failed));
                assert_eq!(open([1; 12], [3; 5], None), Err(Failed));
                for index in 0..sealed.len() {
                    assert_eq!(open([1; 12], [2; 5], Some(index)), Err(Failed));
                }
                assert_eq!(key.open([1; 12], [2; 5], &mut [0; 15]), Err(Failed));
            }
        }
    }

    #[test]
    fn refuses_a_key_of_a_wrong_length() {
        for (algorithm, length) in ALGORITHMS {
            for library in LIBRARIES {
                assert!(Key::new(library, algorithm, &vec![7; length + 1]).is_err());
            }
        }
    }
}
