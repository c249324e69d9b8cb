/* tls_library.h: the calls of OpenSSL that the core makes, as a table that a context fills.
 *
 * The library is loaded, not linked: a process without TLS maps nothing of it. Types come from OpenSSL's own
 * headers, so a call with the wrong arguments does not compile. */
#ifndef XDSI_TLS_LIBRARY_H
#define XDSI_TLS_LIBRARY_H

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#define XDSI_TLS_CALLS(X)                                                                                    \
    X(OpenSSL_version_num)                                                                                   \
    X(TLS_client_method)                                                                                     \
    X(SSL_CTX_new)                                                                                           \
    X(SSL_CTX_free)                                                                                          \
    X(SSL_CTX_ctrl)                                                                                          \
    X(SSL_CTX_set_options)                                                                                   \
    X(SSL_CTX_set_cipher_list)                                                                               \
    X(SSL_CTX_set_ciphersuites)                                                                              \
    X(SSL_CTX_set_security_level)                                                                            \
    X(SSL_CTX_set_verify)                                                                                    \
    X(SSL_CTX_set_default_verify_paths)                                                                      \
    X(SSL_CTX_load_verify_file)                                                                              \
    X(SSL_CTX_use_certificate_chain_file)                                                                    \
    X(SSL_CTX_use_PrivateKey_file)                                                                           \
    X(SSL_CTX_check_private_key)                                                                             \
    X(SSL_CTX_set_default_passwd_cb)                                                                         \
    X(SSL_CTX_set_alpn_protos)                                                                               \
    X(SSL_CTX_get0_param)                                                                                    \
    X(SSL_CTX_sess_set_new_cb)                                                                               \
    X(SSL_set_msg_callback)                                                                                  \
    X(X509_VERIFY_PARAM_set1_host)                                                                           \
    X(X509_VERIFY_PARAM_set1_ip_asc)                                                                         \
    X(X509_VERIFY_PARAM_set_hostflags)                                                                       \
    X(X509_VERIFY_PARAM_set_time)                                                                            \
    X(X509_verify_cert_error_string)                                                                         \
    X(X509_get0_notAfter)                                                                                    \
    X(ASN1_TIME_set)                                                                                         \
    X(ASN1_TIME_diff)                                                                                        \
    X(ASN1_STRING_free)                                                                                      \
    X(BIO_meth_new)                                                                                          \
    X(BIO_meth_free)                                                                                         \
    X(BIO_meth_set_read)                                                                                     \
    X(BIO_meth_set_write)                                                                                    \
    X(BIO_meth_set_ctrl)                                                                                     \
    X(BIO_new)                                                                                               \
    X(BIO_set_data)                                                                                          \
    X(BIO_get_data)                                                                                          \
    X(BIO_set_init)                                                                                          \
    X(BIO_set_flags)                                                                                         \
    X(BIO_clear_flags)                                                                                       \
    X(SSL_new)                                                                                               \
    X(SSL_free)                                                                                              \
    X(SSL_ctrl)                                                                                              \
    X(SSL_set_bio)                                                                                           \
    X(SSL_set_connect_state)                                                                                 \
    X(SSL_set_ex_data)                                                                                       \
    X(SSL_get_ex_data)                                                                                       \
    X(SSL_get0_param)                                                                                        \
    X(SSL_set_session)                                                                                       \
    X(SSL_session_reused)                                                                                    \
    X(SSL_SESSION_up_ref)                                                                                    \
    X(SSL_SESSION_free)                                                                                      \
    X(SSL_SESSION_get0_peer)                                                                                 \
    X(SSL_SESSION_get_protocol_version)                                                                      \
    X(SSL_SESSION_is_resumable)                                                                              \
    X(SSL_do_handshake)                                                                                      \
    X(SSL_read_ex)                                                                                           \
    X(SSL_write_ex)                                                                                          \
    X(SSL_shutdown)                                                                                          \
    X(SSL_set_shutdown)                                                                                      \
    X(SSL_key_update)                                                                                        \
    X(SSL_get_error)                                                                                         \
    X(SSL_get_verify_result)                                                                                 \
    X(SSL_version)                                                                                           \
    X(SSL_get_current_cipher)                                                                                \
    X(SSL_CIPHER_get_protocol_id)                                                                            \
    X(SSL_get0_alpn_selected)                                                                                \
    X(ERR_clear_error)                                                                                       \
    X(ERR_peek_error)                                                                                        \
    X(ERR_reason_error_string)

struct xdsi_tls_library {
#define XDSI_TLS_MEMBER(name) __typeof__(&name) name;
    XDSI_TLS_CALLS(XDSI_TLS_MEMBER)
#undef XDSI_TLS_MEMBER
};

/* Fill the table. 0, or -ENOEXEC with a sentence in why. */
int xdsi_tls_library_load(struct xdsi_tls_library *lib, char *why, size_t cap);

#endif
