/* tls_words.c: sentences for reasons, names of alerts, ciphers and groups, and how faults map to reasons. */
#include "cores/tls/tls_int.h"

const char *xds_tls_reason_text(uint32_t reason)
{
    static const char *const texts[XDS_TLS_REASONS] = {
        "",
        "the connection ended without close_notify: what came may have been cut off",
        "the handshake took too long",
        "its certificate, or one of the chain, has expired",
        "its certificate, or one of the chain, is not valid yet",
        "its certificate is signed by itself and not trusted",
        "its certificate is not signed by an authority that is trusted",
        "its certificate is for other names",
        "its certificate has a key or digest that is too weak",
        "its certificate is refused",
        "it speaks no version of TLS that is allowed",
        "it has no cipher, group or signature in common with us",
        "a record does not decrypt: damaged, or sent by somebody else",
        "a record is longer than allowed",
        "it sent what is not built as TLS prescribes",
        "it sent a message that has no place there",
        "it ended the session with an alert",
        "it broke the protocol",
        "OpenSSL failed",
    };
    return reason < XDS_TLS_REASONS ? texts[reason] : "";
}

const char *xds_tls_alert_name(uint32_t alert)
{
    static const struct {
        uint32_t alert;
        const char *name;
    } names[] = {
        {0, "close_notify"},
        {10, "unexpected_message"},
        {20, "bad_record_mac"},
        {21, "decryption_failed"}, /* reserved since 1.1, old peers send it */
        {22, "record_overflow"},
        {30, "decompression_failure"},
        {40, "handshake_failure"},
        {41, "no_certificate"},
        {42, "bad_certificate"},
        {43, "unsupported_certificate"},
        {44, "certificate_revoked"},
        {45, "certificate_expired"},
        {46, "certificate_unknown"},
        {47, "illegal_parameter"},
        {48, "unknown_ca"},
        {49, "access_denied"},
        {50, "decode_error"},
        {51, "decrypt_error"},
        {70, "protocol_version"},
        {71, "insufficient_security"},
        {80, "internal_error"},
        {86, "inappropriate_fallback"},
        {90, "user_canceled"},
        {100, "no_renegotiation"},
        {109, "missing_extension"},
        {110, "unsupported_extension"},
        {111, "certificate_unobtainable"},
        {112, "unrecognized_name"},
        {113, "bad_certificate_status_response"},
        {115, "unknown_psk_identity"},
        {116, "certificate_required"},
        {120, "no_application_protocol"},
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (names[i].alert == alert)
            return names[i].name;
    return "unknown";
}

const char *xds_tls_cipher_name(uint32_t cipher)
{
    switch (cipher) {
    case 0x1301:
        return "TLS_AES_128_GCM_SHA256";
    case 0x1302:
        return "TLS_AES_256_GCM_SHA384";
    case 0x1303:
        return "TLS_CHACHA20_POLY1305_SHA256";
    case 0xc02b:
        return "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256";
    case 0xc02c:
        return "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
    case 0xc02f:
        return "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
    case 0xc030:
        return "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384";
    case 0xcca8:
        return "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256";
    case 0xcca9:
        return "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256";
    default:
        return "unknown";
    }
}

const char *xds_tls_group_name(uint32_t group)
{
    switch (group) {
    case 0:
        return "none";
    case 23:
        return "secp256r1";
    case 24:
        return "secp384r1";
    case 25:
        return "secp521r1";
    case 29:
        return "x25519";
    default:
        return "unknown";
    }
}

/* OpenSSL names groups by its own numbers, and what it does not know by IANA's with a bit set. */
uint16_t xdsi_tls_group_of_nid(long nid)
{
    switch (nid) {
    case NID_undef:
        return 0;
    case NID_X9_62_prime256v1:
        return 23;
    case NID_secp384r1:
        return 24;
    case NID_secp521r1:
        return 25;
    case NID_X25519:
        return 29;
    default:
        return (uint16_t)nid;
    }
}

uint32_t xdsi_tls_reason_of_verify(long verify)
{
    switch (verify) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
        return XDS_TLS_EXPIRED;
    case X509_V_ERR_CERT_NOT_YET_VALID:
        return XDS_TLS_NOT_YET;
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
        return XDS_TLS_SELF_SIGNED;
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
        return XDS_TLS_UNKNOWN_CA;
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
        return XDS_TLS_WRONG_NAME;
    case X509_V_ERR_EE_KEY_TOO_SMALL:
    case X509_V_ERR_CA_KEY_TOO_SMALL:
    case X509_V_ERR_CA_MD_TOO_WEAK:
        return XDS_TLS_WEAK;
    default:
        return XDS_TLS_CERTIFICATE;
    }
}

/* A fault that we found: the alert that RFC 8446 6.2 prescribes for it says what it is. */
uint32_t xdsi_tls_reason_of_alert(unsigned alert)
{
    switch (alert) {
    case SSL_AD_UNEXPECTED_MESSAGE:
        return XDS_TLS_UNEXPECTED;
    case SSL_AD_BAD_RECORD_MAC:
        return XDS_TLS_RECORD_BAD;
    case SSL_AD_RECORD_OVERFLOW:
        return XDS_TLS_RECORD_LENGTH;
    case SSL_AD_HANDSHAKE_FAILURE:
    case SSL_AD_INSUFFICIENT_SECURITY:
        return XDS_TLS_CIPHER;
    case SSL_AD_PROTOCOL_VERSION:
        return XDS_TLS_VERSION;
    case SSL_AD_DECODE_ERROR:
    case SSL_AD_ILLEGAL_PARAMETER:
    case SSL_AD_MISSING_EXTENSION:
    case SSL_AD_UNSUPPORTED_EXTENSION:
        return XDS_TLS_MALFORMED;
    case SSL_AD_BAD_CERTIFICATE:
    case SSL_AD_UNSUPPORTED_CERTIFICATE:
    case SSL_AD_CERTIFICATE_UNKNOWN:
        return XDS_TLS_CERTIFICATE;
    case SSL_AD_INTERNAL_ERROR:
        return XDS_TLS_INTERNAL;
    default:
        return XDS_TLS_PROTOCOL;
    }
}
