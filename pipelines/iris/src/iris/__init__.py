"""The smallest pipeline: Fisher's irises, classified by multinomial logistic regression."""
