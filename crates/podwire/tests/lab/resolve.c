/* resolve NAME [TIMES]: prints the addresses of a name, as programs find them.
 * Built with musl by the tests. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	int times = argc > 2 ? atoi(argv[2]) : 1;
	/* Both families: A and AAAA are asked from one socket at once. */
	struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
	while (times-- > 0) {
		struct addrinfo *list;
		int error = getaddrinfo(argv[1], NULL, &hints, &list);
		if (error) {
			fprintf(stderr, "%s: %s\n", argv[1], gai_strerror(error));
			return 1;
		}
		for (struct addrinfo *at = list; at && times == 0; at = at->ai_next) {
			char text[INET6_ADDRSTRLEN];
			const void *address = at->ai_family == AF_INET
				? (void *)&((struct sockaddr_in *)at->ai_addr)->sin_addr
				: (void *)&((struct sockaddr_in6 *)at->ai_addr)->sin6_addr;
			puts(inet_ntop(at->ai_family, address, text, sizeof text));
		}
		freeaddrinfo(list);
	}
	return 0;
}
